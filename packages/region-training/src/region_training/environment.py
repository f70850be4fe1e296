"""What a run ran on: versions, devices, memory, code revision. For `environment.json` and for bug reports.

Nothing personal is in it beyond the command line, whose secrets are hidden: no host or user names, no other paths, no
environment variables but the launcher's.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from region_training.run_folder import hide_secrets

PACKAGES = (
    *("torch", "torchvision", "transformers", "deepspeed", "accelerate", "tokenizers", "safetensors", "numpy"),
    *("einops", "pillow", "decord2", "jsonargparse", "region-core", "region-heads", "region-training"),
)
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
_GIB = 2**30


def collect_environment(*, command: Sequence[str] | None = None) -> dict[str, object]:
    """Describe this process's surroundings as plain data.

    Args:
        command: The command line to note; that of the process by default. Values of secret options are hidden.

    Returns:
        A dict that JSON can hold. Sizes are in GiB. Importing torch, it takes some seconds the first time.
    """
    words = sys.argv[1:] if command is None else command
    return {
        "command": [Path(sys.argv[0]).name, *hide_secrets(words)],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": _git(),
        "ffmpeg": _first_line(["ffmpeg", "-version"]),
        "compiler": _first_line(["c++", "--version"]),
        "cpu": {"cores": _cores(), **_main_memory()},
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        "accelerators": _accelerators(),
        "launcher": {name: os.environ[name] for name in _LAUNCHER_VARIABLES if name in os.environ},
    }


def describe_environment(environment: Mapping[str, object]) -> str:
    """The same as lines of text, to paste into a bug report."""
    return "\n".join(_lines(environment, "")) + "\n"


def _lines(tree: Mapping[str, object], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:" if value else f"{indent}{key}: none")
            lines += _lines(value, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, item in enumerate(value):
                lines.append(f"{indent}{key} {index}:")
                lines += _lines(item, f"{indent}  ")
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: {' '.join(str(item) for item in value) or 'none'}")
        else:
            lines.append(f"{indent}{key}: {'none' if value is None else value}")
    return lines


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, object]:
    """The revision of the code, and whether files differ from it; empty where it is not in a repository."""
    here = str(Path(__file__).parent)
    revision = _first_line(["git", "-C", here, "rev-parse", "--verify", "HEAD"])
    if revision is None or not re.fullmatch(r"[0-9a-f]{40,64}", revision):
        return {}
    return {"revision": revision, "changed": _first_line(["git", "-C", here, "status", "--porcelain"]) is not None}


def _first_line(command: list[str]) -> str | None:
    """The first line that a program prints; None where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if lines else None


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _main_memory() -> dict[str, float]:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return {}
    kib = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE))
    names = {"memory_gib": "MemTotal", "memory_free_gib": "MemAvailable"}
    return {name: round(int(kib[source]) * 1024 / _GIB, 1) for name, source in names.items() if source in kib}


def _accelerators() -> list[dict[str, object]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found: list[dict[str, object]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(total / _GIB, 1),
                "memory_free_gib": round(free / _GIB, 1),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        )
    return found
