import os
import signal

import torch
from region_core.losses import LossTerms
from region_training.stopping import MicroBatchTrace, StopRequest, non_finite_report


def test_signals_are_noted_and_the_handlers_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def _trace(**totals):
    terms = LossTerms()
    for name, total in totals.items():
        terms.add(name, torch.tensor(total, requires_grad=True), 1)
    return MicroBatchTrace.of(["r1", "r2"], terms.weighted_total(), terms)


def test_a_trace_names_the_terms_and_the_records():
    assert _trace(a=1.0).complaints() == []
    assert _trace(a=1.0).is_finite()
    assert _trace(a=1.0, b=float("nan"), c=float("inf")).complaints() == [
        "loss term 'b' is nan, loss term 'c' is inf in the records ['r1', 'r2']"
    ]
    assert not _trace(a=1.0).terms["a"].requires_grad


def test_a_loss_may_break_though_its_terms_do_not():
    trace = MicroBatchTrace((), torch.tensor(float("inf")), {"a": torch.tensor(1.0)})
    assert trace.complaints() == ["the weighted loss is inf (the batch names no records)"]


def test_the_report_tells_loss_from_gradient():
    loss = non_finite_report(7, [([], ["x"]), (["loss term 'a' is nan in the records ['y']"], ["y"])], None)
    assert loss.splitlines()[0].startswith("step 7 is not finite")
    assert loss.splitlines()[1:] == ["  rank 1: loss term 'a' is nan in the records ['y']"]
    gradient = non_finite_report(7, [([], ["x"]), ([], ["y"])], float("inf"))
    assert "its norm is inf" in gradient
    assert gradient.splitlines()[-2:] == ["  rank 0: the records ['x']", "  rank 1: the records ['y']"]
