"""Ending a training in good order: the one process that a run recorded gets SIGTERM, saves a checkpoint and ends.

No search for processes by name: that also kills an editor with the name in its title, and other people's runs.
"""

import json
import logging
import os
import socket
from pathlib import Path

import psutil

from lmms.verbs import StopSettings

PROCESS_FILE = "process.json"

logger = logging.getLogger(__name__)


def record_process(run_dir: Path) -> None:
    """Write which process trains in a run folder; for rank 0."""
    entry = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
    (run_dir / PROCESS_FILE).write_text(json.dumps(entry), encoding="utf-8")


def forget_process(run_dir: Path) -> None:
    """Take the note of `record_process` away again."""
    (run_dir / PROCESS_FILE).unlink(missing_ok=True)


def stop(settings: StopSettings) -> int:
    """Let the training in a run folder save and end.

    Returns:
        0 when it has ended, 1 when it still works on its checkpoint after `wait_s`.

    Raises:
        ValueError: No training of this run is under way on this machine.
    """
    process = _find(Path(settings.run))
    process.terminate()
    logger.info("process %d saves a checkpoint and ends", process.pid)
    try:
        process.wait(timeout=settings.wait_s)
    except psutil.TimeoutExpired:
        logger.warning("it has not ended after %g s; a large checkpoint takes its time", settings.wait_s)
        return 1
    logger.info("ended; the command that started it continues the run")
    return 0


def _find(run_dir: Path) -> psutil.Process:
    try:
        entry = json.loads((run_dir / PROCESS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{run_dir}: no training is under way (there is no {PROCESS_FILE})") from error
    if entry["host"] != socket.gethostname():
        raise ValueError(f"{run_dir}: the training runs on {entry['host']}, this is {socket.gethostname()}")
    try:
        process = psutil.Process(entry["pid"])
        # Numbers of processes are used again.
        same = abs(process.create_time() - entry["started"]) < 1
    except psutil.NoSuchProcess:
        same = False
    if not same:
        raise ValueError(f"{run_dir}: the training of process {entry['pid']} is over; it did not end in good order")
    return process
