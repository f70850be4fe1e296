"""The processes of one run and what they tell each other.

A run is started by torchrun, by DeepSpeed's launcher, or by nothing at all: a single process becomes rank 0 of 1.
Beside the group that moves gradients (NCCL on CUDA, gloo on CPU) there is always a small gloo group for decisions, so
that agreeing on a flag neither waits for the accelerator nor touches its memory.
"""

import atexit
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from region_training.settings import ConfigError

Value = TypeVar("Value")

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """The ranks of this run, and the group on which they agree on decisions.

    Args:
        timeout_s: A collective that waits longer for another rank fails.
    """

    def __init__(self, timeout_s: float) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        # new_group is typed for ranks that are left out; here none is.
        self._group = cast("dist.ProcessGroup", group)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes the run's files."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return for every flag whether it is raised on any rank."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in raised.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self._group)


def choose_device(wanted: str) -> str:
    """Return "cpu" or "cuda" for the setting `device`.

    Raises:
        ConfigError: CUDA is wanted where there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError(
            "training.device: got 'cuda', but torch sees no CUDA device; expected 'cpu' or 'auto' here "
            f"(torch {torch.__version__}, built for CUDA {torch.version.cuda})"
        )
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def join_ranks(device: str, timeout_s: float, *, num_workers: int = 0) -> Ranks:
    """Join the launcher's process group, or become the only rank when there is no launcher.

    Args:
        device: "cpu" or "cuda".
        timeout_s: A collective that waits longer for another rank fails.
        num_workers: Data workers of each rank; on a CPU each of them gets a core.

    Raises:
        ConfigError: Only some of the launcher's variables are set.
    """
    _complete_environment()
    if device == "cpu":
        # Read when deepspeed is first imported; without it a machine with a GPU would pick CUDA.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _share_cores(num_workers)
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # DeepSpeed would otherwise compile a shared-memory all-reduce at start, with a C++ compiler and in a minute.
        # Set through vars(): reading the attribute would first try out the compiler on every kernel that there is.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    began_here = not dist.is_initialized()
    # Before the model is built: ZeRO-3 asks DeepSpeed, not torch, for the world size when it partitions at load.
    deepspeed.init_distributed(
        dist_backend="gloo" if device == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )
    if began_here:
        atexit.register(_leave)
    return Ranks(timeout_s)


def _complete_environment() -> None:
    """Check the launcher's variables, and set them for a process that nobody launched."""
    present = [name for name in _LAUNCHER_VARIABLES if name in os.environ]
    if dist.is_initialized() or len(present) == len(_LAUNCHER_VARIABLES):
        return
    # A command line that accepts --local_rank may have set LOCAL_RANK alone.
    if set(present) - {"LOCAL_RANK"}:
        missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
        raise ConfigError(
            f"the environment has {present} but not {missing}; expected all of them (torchrun and deepspeed set them) "
            "or none (a single process)"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(values)


def _share_cores(num_workers: int) -> None:
    """Divide the cores among the ranks and data workers of this machine, unless OMP_NUM_THREADS says how.

    Threads that wait for one whose core a data worker took spin: two threads beside one worker on two cores are a
    quarter slower than one thread.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    # torchrun and DeepSpeed's launcher name it differently.
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    num_threads = max(torch.get_num_threads() // local_world_size - num_workers, 1)
    # Also for accelerate, which would otherwise set a number of its own, with a warning.
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
