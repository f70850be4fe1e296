"""Two processes for the tests of what ranks do together, by forking: torch is imported once, so a case takes no second.

For torch and gloo alone. `region_training.testing` starts ranks of whole trainings, which write logs and may be killed.
"""

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def run_forked_ranks(function: Callable[[int], Result], folder: Path, *, num_ranks: int = 2) -> list[Result]:
    """Call a function on forked ranks that share a gloo group.

    Args:
        function: Gets the rank; what it returns must be picklable.
        folder: An empty folder, where the ranks meet.
        num_ranks: How many.

    Returns:
        What each rank returned, in the order of the ranks.

    Raises:
        AssertionError: A rank raised; the message holds the traceback of each that did.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(function, rank, num_ranks, folder / "rendezvous", results) for rank in range(num_ranks)]
    ranks = [context.Process(target=_run_rank, args=own, daemon=True) for own in arguments]
    with warnings.catch_warnings():
        # Python 3.12 and later warn of every fork beside threads; the children use none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in ranks:
            process.start()
    outcomes = sorted((results.get(timeout=60) for _ in ranks), key=lambda outcome: outcome[0])
    for process in ranks:
        process.join(timeout=10)
    failures = [f"rank {rank}:\n{failure}" for rank, _, failure in outcomes if failure is not None]
    assert not failures, "\n".join(failures)
    return [result for _, result, _ in outcomes]


def _run_rank(function: Callable[[int], object], rank: int, num_ranks: int, rendezvous: Path, results: Queue) -> None:
    # One thread: threads that the parent's OpenMP pool had do not exist after a fork.
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_ranks)
        results.put((rank, function(rank), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        results.close()
        results.join_thread()
        os._exit(0)
