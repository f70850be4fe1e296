"""Time, memory and random states of this process."""

import random
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

_GIB = 2**30


class Clock:
    """Seconds and samples between two log steps.

    Attributes:
        num_samples: Samples since the last log step, over all ranks.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.num_samples = 0
        self._num_steps = 0
        self._step_s = self._data_s = self._began_s = 0.0

    def begin_step(self) -> None:
        """Start a step; its data are fetched next."""
        self._began_s = time.perf_counter()

    def data_arrived(self) -> None:
        """Note that the step's data are here."""
        self._data_s += time.perf_counter() - self._began_s

    def end_step(self) -> None:
        """End a step; what follows (logs, evaluation, checkpoints) is not counted."""
        self._step_s += time.perf_counter() - self._began_s
        self._num_steps += 1

    def drain(self) -> dict[str, float]:
        """Return means per step since the last call, and start anew."""
        steps = max(self._num_steps, 1)
        values = {
            "time/step_s": self._step_s / steps,
            "time/data_s": self._data_s / steps,
            "throughput/samples_per_s": self.num_samples / max(self._step_s, 1e-9),
        }
        self._reset()
        return values


@contextmanager
def random_states_kept() -> Generator[None]:
    """Put the states of all global random generators back afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # global states
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def peak_gib(device: torch.device) -> float:
    """Peak memory of the device; on CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
