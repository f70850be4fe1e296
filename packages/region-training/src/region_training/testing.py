"""Several ranks in a test, in seconds: import once, fork the ranks, meet through a file.

Starting two ranks with torchrun spends a minute on imports. Here the test's process has imported everything, and each
rank is a fork of it; the ranks find each other through a file below the test's folder, so no port is needed.

    def both_ranks_agree(rank: int) -> int: ...

    results = run_ranks(both_ranks_agree, 2, tmp_path)      # one result per rank; an exception there is raised here

Limits: CPU only, Linux only. A fork inherits memory but no threads. A process that has used CUDA cannot be forked. On
CPU torch's pool of OpenMP threads is missing in the child; each rank therefore computes with one thread, which never
asks for the pool. A function that raises the number of threads would hang.
"""

import faulthandler
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import torch.distributed as dist

_GRACE_S = 10.0  # between the end of a rank that hangs and giving up on it
_TAIL_LINES = 200  # of a rank's output in an error: a stack dump below pytest is long

# What the first training step of a process imports: seconds each, so once here instead of once in every rank.
_SLOW_IMPORTS = ("torch._inductor.compile_fx", "transformers", "deepspeed")


class RankError(RuntimeError):
    """A rank raised, died or hung; the message holds what each rank had to say."""


@dataclass(frozen=True)
class RankOutcome:
    """How one rank ended.

    Attributes:
        rank: Its number.
        exit_code: 0, or minus the signal that ended it, or another code.
        result: What the function returned; None unless it returned.
        error: The traceback of what it raised; empty if it did not raise.
        output: Everything it wrote to standard output and standard error.
    """

    rank: int
    exit_code: int | None
    result: object
    error: str
    output: str


class RunningRanks:
    """Ranks that have been started; made by `start_ranks`."""

    def __init__(self, processes: list[ForkProcess], pipes: list[Connection], logs: list[Path]) -> None:
        self._processes = processes
        self._pipes = pipes
        self._logs = logs

    def send_signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        os.kill(self._processes[rank].pid or 0, number)

    def wait(self, timeout_s: float = 120.0) -> list[RankOutcome]:
        """Wait until every rank has ended; what still runs after `timeout_s` dumps its stack and is killed."""
        deadline_s = time.monotonic() + timeout_s
        answers = [self._answer(rank, deadline_s) for rank in range(len(self._processes))]
        for process in self._processes:
            process.join(max(deadline_s - time.monotonic(), 0.0))
        if any(process.is_alive() for process in self._processes):
            self._end_hanging()
        outcomes = []
        for rank, (process, (result, error)) in enumerate(zip(self._processes, answers, strict=True)):
            output = self._logs[rank].read_text(encoding="utf-8", errors="replace")
            outcomes.append(RankOutcome(rank, process.exitcode, result, error, output))
        return outcomes

    def _answer(self, rank: int, deadline_s: float) -> tuple[object, str]:
        pipe = self._pipes[rank]
        try:
            if pipe.poll(max(deadline_s - time.monotonic(), 0.0)):
                return pipe.recv()
        except EOFError:
            return None, ""  # it died without a word; its exit code says how
        return None, "it did not answer in time"

    def _end_hanging(self) -> None:
        hanging = [process for process in self._processes if process.is_alive()]
        for process in hanging:
            os.kill(process.pid or 0, signal.SIGUSR1)  # faulthandler writes the stacks
        time.sleep(0.5)
        for process in hanging:
            process.kill()
            process.join(_GRACE_S)


def start_ranks(function: Callable[..., object], world_size: int, folder: Path, *args: object) -> RunningRanks:
    """Fork the ranks and return at once.

    Args:
        function: Called in every rank as `function(rank, *args)`, inside a gloo process group.
        world_size: Number of ranks.
        folder: For the meeting point and the ranks' output.
        args: Passed on; what they hold is inherited, nothing is pickled.

    Raises:
        RuntimeError: This process has used CUDA and cannot be forked.
    """
    if torch.cuda.is_initialized():
        raise RuntimeError("this process has used CUDA; ranks can only be forked from a process that has not")
    _import_once()
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    context = multiprocessing.get_context("fork")
    processes, pipes, logs = [], [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        log = folder / f"{meeting.name}-rank-{rank}.log"
        log.touch()
        process = context.Process(target=_be_rank, args=(function, rank, world_size, meeting, log, sender, args))
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
        logs.append(log)
    return RunningRanks(processes, pipes, logs)


def run_ranks(
    function: Callable[..., object], world_size: int, folder: Path, *args: object, timeout_s: float = 120.0
) -> list[object]:
    """Run a function in several ranks and return what each returned.

    Args:
        function: Called in every rank as `function(rank, *args)`, inside a gloo process group. It may be a closure; its
            result is pickled.
        world_size: Number of ranks.
        folder: For the meeting point and the ranks' output, usually pytest's `tmp_path`.
        args: Passed on to the function.
        timeout_s: Ranks that take longer dump their stacks and are killed.

    Returns:
        The results, in rank order.

    Raises:
        RankError: A rank raised, died or hung.
    """
    outcomes = start_ranks(function, world_size, folder, *args).wait(timeout_s)
    failed = [outcome for outcome in outcomes if outcome.error or outcome.exit_code != 0]
    if failed:
        raise RankError("\n".join(_describe(outcome) for outcome in failed))
    return [outcome.result for outcome in outcomes]


def _import_once() -> None:
    if torch.cuda.is_available():
        # DeepSpeed decides for CUDA or CPU when it is imported; where there is CUDA each rank must decide for itself.
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _SLOW_IMPORTS:
            importlib.import_module(name)


def _describe(outcome: RankOutcome) -> str:
    tail = "\n".join(outcome.output.splitlines()[-_TAIL_LINES:])
    return f"rank {outcome.rank} ended with {outcome.exit_code}\n{outcome.error}\n--- its output ends with\n{tail}"


def _be_rank(
    function: Callable[..., object],
    rank: int,
    world_size: int,
    meeting: Path,
    log: Path,
    answer: Connection,
    args: tuple[object, ...],
) -> None:
    """The life of a rank, in the child."""
    with log.open("w", encoding="utf-8") as output:
        # File descriptors, not sys.stdout: what C++ writes shall be in the log as well.
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = output
        faulthandler.register(signal.SIGUSR1, file=output, all_threads=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The test's filter turns warnings into errors; those of other people's libraries are not the rank's business.
        warnings.resetwarnings()
        logging.basicConfig(stream=output, level=logging.INFO, force=True)
        torch.set_num_threads(1)
        # What was inherited is never garbage: without this each collection would walk through all of it.
        gc.freeze()
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "DS_ACCELERATOR": "cpu",
            # Where it is unset accelerate raises the number of threads, and the rank would wait for the missing pool.
            "OMP_NUM_THREADS": "1",
        }
        try:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
            answer.send((function(rank, *args), ""))
        except BaseException:
            answer.send((None, traceback.format_exc()))
            output.flush()
            # At once: a peer that waits for this rank notices, and no exit handler waits for the peer.
            os._exit(1)
        output.flush()
        os._exit(0)
