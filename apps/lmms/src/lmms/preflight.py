"""`lmms preflight`, and the same look before every training: will it fit, and is everything there?

Memory is estimated from a model on the meta device and compared with what is free. Nothing is allocated to try it out,
and nothing to hold memory against others: where it is taken, `preflight.wait_s` waits.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from region_training.engine import choose_precision
from region_training.ranks import Ranks, choose_device
from rich.console import Console
from transformers import ProcessorMixin

from lmms.config import Settings
from lmms.findings import VERDICTS, advise, judge_disk, judge_memory
from lmms.machine import DeviceState, free_disk, gpu_memory, main_memory
from lmms.memory import built_bytes, checkpoint_bytes
from lmms.preflight_plan import Plan, find_processor, make_plan
from lmms.preflight_table import PREFLIGHT, Outcome

POLL_S = 5.0

logger = logging.getLogger(__name__)


def preflight(settings: Settings) -> int:
    """Look, print, write `preflight.json`.

    A run folder must be empty or hold a run, so before there is one the file stands beside it.

    Returns:
        0 where training can begin, 1 where it may not fit, 2 where it cannot.
    """
    device = choose_device(settings.training.device)
    num_devices = torch.cuda.device_count() if device == "cuda" else 1
    world_size = int(os.environ.get("WORLD_SIZE", num_devices))
    plan = make_plan(settings, find_processor(settings), world_size)

    def look() -> list[DeviceState]:
        if device == "cpu":
            return [main_memory(_num_local(world_size))]
        return [gpu_memory(index) for index in range(num_devices)]

    outcome = _wait(lambda: make_outcome(settings, plan, look(), world_size), settings.preflight.wait_s)
    folder = Path(str(settings.run_dir))
    has_begun = (folder / "config.yaml").is_file()
    path = folder / PREFLIGHT if has_begun else folder.with_name(f"{folder.name}.{PREFLIGHT}")
    outcome.write(path)
    console = Console(soft_wrap=True)
    if outcome.estimates:
        outcome.table().show()
    for line in (*outcome.lines(), f"written: {path}"):
        console.print(line, markup=False, highlight=False)
    return VERDICTS.index(outcome.verdict)


def check_before_training(settings: Settings, processor: ProcessorMixin, ranks: Ranks) -> None:
    """Look before a training begins; every rank calls it.

    Raises:
        ValueError: It cannot fit, also after `preflight.wait_s`, or a record cannot be read.
    """
    if not settings.preflight.check:
        return
    plan = _shared_plan(settings, processor, ranks)
    device = choose_device(settings.training.device)

    def look() -> Outcome:
        local = _num_local(ranks.world_size)
        own = gpu_memory(torch.cuda.current_device()) if device == "cuda" else main_memory(local)
        return make_outcome(settings, plan, ranks.gather(own), ranks.world_size)

    # Rank 0's clock and disk decide for all, who must look equally often.
    outcome = _wait(look, settings.preflight.wait_s, agree=ranks.broadcast)
    outcome = ranks.broadcast(outcome)
    if ranks.is_first:
        outcome.write(Path(str(settings.run_dir)) / PREFLIGHT)
        logger.log(logging.INFO if outcome.verdict == "PASS" else logging.WARNING, "%s", "\n".join(outcome.lines()))
    if outcome.verdict == "FAIL":
        failed = "; ".join(finding.text for finding in outcome.findings if finding.verdict == "FAIL")
        advice = f" For less memory: {'; '.join(outcome.advice[:3])}." if _is_worth_waiting(outcome) else ""
        raise ValueError(f"preflight: {failed}.{advice} `preflight.check: false` begins all the same")


def make_outcome(settings: Settings, plan: Plan, devices: Sequence[DeviceState], world_size: int) -> Outcome:
    """Compare what is needed with what is free."""
    training = settings.training
    device = choose_device(training.device)
    precision = choose_precision(training, device)
    findings, advice = list(plan.findings), []
    if plan.sizes is not None:
        estimate = plan.estimates[training.zero_stage]
        findings += [judge_memory("memory", estimate.total, state) for state in devices]
        if device == "cuda":
            host = built_bytes(plan.sizes) + estimate.offloaded
            findings.append(judge_memory("main memory", host, main_memory(_num_local(world_size))))
        each = checkpoint_bytes(plan.sizes, precision)
        # A new checkpoint is written before the oldest one goes, and the model is exported beside them.
        findings.append(judge_disk(each, training.keep_checkpoints + 2, free_disk(Path(str(settings.run_dir)))))
        advice = advise(estimate, settings, world_size=world_size, precision=precision, device=device)
    parts = () if plan.sizes is None else plan.sizes.parts
    return Outcome(
        stage=training.zero_stage,
        world_size=world_size,
        precision=precision,
        parts={part.name: (part.num_parameters, part.num_trained) for part in parts},
        estimates=plan.estimates,
        devices=devices,
        findings=findings,
        advice=advice,
    )


def _shared_plan(settings: Settings, processor: ProcessorMixin, ranks: Ranks) -> Plan:
    """Rank 0's plan on every rank, or what it could not do."""
    plan: Plan | Exception | None = None
    if ranks.is_first:
        try:
            plan = make_plan(settings, processor, ranks.world_size)
        except Exception as error:  # the others wait for an answer
            plan = error
    plan = ranks.broadcast(plan)
    if isinstance(plan, Exception):
        raise plan
    assert plan is not None
    return plan


def _wait(look: Callable[[], Outcome], wait_s: float, agree: Callable[[bool], bool] = bool) -> Outcome:
    """Look until there is enough memory, or `wait_s` seconds are over.

    Args:
        look: Compares what is needed with what is free.
        wait_s: Seconds.
        agree: From a rank's own wish to look again to what all do.
    """
    begin = time.monotonic()
    outcome = look()
    while agree(_is_worth_waiting(outcome) and time.monotonic() - begin < wait_s):
        time.sleep(min(POLL_S, wait_s))
        outcome = look()
    return outcome


def _is_worth_waiting(outcome: Outcome) -> bool:
    """Whether memory is what lacks, which others may give back, and nothing else."""
    failed = [finding for finding in outcome.findings if finding.verdict == "FAIL"]
    return bool(failed) and all("memory" in finding.name for finding in failed)


def _num_local(world_size: int) -> int:
    """Ranks on this machine; all of them where no launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)
