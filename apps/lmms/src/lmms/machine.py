"""What the machine has free now. Nothing is allocated to find out, and nothing to hold it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class DeviceState:
    """Memory of one device, as a rank finds it.

    Attributes:
        name: `cuda:0 NVIDIA ...` or `main memory`.
        free: Bytes that a rank can have.
        total: Bytes of the device; of main memory, a rank's share.
        others: Bytes that other processes hold.
        processes: Process -> bytes on the device, where the driver's tool tells.
    """

    name: str
    free: int
    total: int
    others: int
    processes: dict[int, int]


def main_memory(num_ranks: int) -> DeviceState:
    """A rank's share of main memory.

    Args:
        num_ranks: Ranks on this machine.
    """
    memory = psutil.virtual_memory()
    return DeviceState(
        "main memory", memory.available // num_ranks, memory.total // num_ranks, memory.total - memory.available, {}
    )


def gpu_memory(index: int) -> DeviceState:
    """Memory of one CUDA device; what this process has reserved counts as free."""
    free, total = torch.cuda.mem_get_info(index)
    own = torch.cuda.memory_reserved(index)
    properties = torch.cuda.get_device_properties(index)
    others = {pid: used for pid, used in gpu_processes(str(properties.uuid)).items() if pid != os.getpid()}
    return DeviceState(f"cuda:{index} {properties.name}", free + own, total, total - free - own, others)


def gpu_processes(uuid: str) -> dict[int, int]:
    """Processes on a CUDA device and their bytes, by the driver's tool; none where it is not there or does not tell.

    Args:
        uuid: Of the device, with or without the tool's prefix `GPU-`.
    """
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return {}
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    wanted = uuid.removeprefix("GPU-")
    return {
        int(row[1]): int(row[2]) * 2**20
        for row in rows
        if len(row) == 3 and row[0].removeprefix("GPU-") == wanted and row[1].isdigit() and row[2].isdigit()
    }


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
