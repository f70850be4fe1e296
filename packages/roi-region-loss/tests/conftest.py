import multiprocessing
import os
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist

WORLD_SIZE = 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


def _rank_main(function, rank, rendezvous, results):
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
        results.put((rank, function(rank), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        results.close()
        results.join_thread()
        os._exit(0)


@pytest.fixture
def run_ranks(tmp_path):
    """Run a function on two forked ranks and return what each returned; torch is imported once, here."""

    def run(function):
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        ranks = [
            context.Process(target=_rank_main, args=(function, rank, tmp_path / "rendezvous", results), daemon=True)
            for rank in range(WORLD_SIZE)
        ]
        with warnings.catch_warnings():
            # Python 3.12 and later warn of every fork beside threads; the children above use none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in ranks:
                process.start()
        outcomes = sorted((results.get(timeout=60) for _ in ranks), key=lambda outcome: outcome[0])
        for process in ranks:
            process.join(timeout=10)
        failures = [f"rank {rank}:\n{failure}" for rank, _, failure in outcomes if failure is not None]
        assert not failures, "\n".join(failures)
        return [result for _, result, _ in outcomes]

    return run
