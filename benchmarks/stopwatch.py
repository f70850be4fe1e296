"""The options and the clock that benchmarks share.

On a CPU with one thread the clock counts the CPU time of this process, which other programs on a shared machine do not
add to; it is the wall time of an idle machine. With more threads it is the wall time, and on CUDA the wall time after
the device has finished.
"""

import argparse
import time

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def options_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, its times mean nothing")
    return parser


class Stopwatch:
    """Reads the time.

    Args:
        device: "cpu" or "cuda".
        threads: CPU threads of torch, which are set here.
    """

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = device
        self._threads = threads

    def seconds(self) -> float:
        """The time now; only differences mean something."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        elif self._threads == 1:
            return time.process_time()
        return time.perf_counter()

    def describe(self) -> str:
        """The device and the clock, for the head of a table."""
        if self._device == "cuda":
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        clock = "1 thread, CPU time" if self._threads == 1 else f"{self._threads} threads, wall time"
        return f"CPU, {clock}, torch {torch.__version__}"
