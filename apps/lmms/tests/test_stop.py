"""Stopping a run: its own process, and no other."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lmms.stop import PROCESS_FILE, forget_process, record_process, stop
from lmms.verbs import StopSettings

WAITS_FOR_TERM = """
import signal, sys, time
from pathlib import Path
from lmms.stop import record_process
run = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit((run / "ended in good order").write_text("")))
record_process(run)
time.sleep(60)
"""


def test_the_recorded_process_gets_sigterm_and_is_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITS_FOR_TERM, str(tmp_path)]) as child:
        try:
            _stop_when_recorded(tmp_path)
            assert (tmp_path / "ended in good order").exists()
        finally:
            child.kill()


def _stop_when_recorded(run_dir: Path) -> None:
    deadline = time.monotonic() + 60
    while not (run_dir / PROCESS_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stop(StopSettings(run=str(run_dir), wait_s=30.0)) == 0


def test_a_run_that_is_not_under_way_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training is under way"):
        stop(StopSettings(run=str(tmp_path)))
    record_process(tmp_path)
    forget_process(tmp_path)
    with pytest.raises(ValueError, match="no training is under way"):
        stop(StopSettings(run=str(tmp_path)))


def test_another_process_with_the_number_is_left_alone(tmp_path: Path) -> None:
    entry = {"pid": psutil.Process().pid, "started": 0.0, "host": socket.gethostname()}
    (tmp_path / PROCESS_FILE).write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="is over"):
        stop(StopSettings(run=str(tmp_path)))


def test_another_machine_is_named(tmp_path: Path) -> None:
    (tmp_path / PROCESS_FILE).write_text(json.dumps({"pid": 1, "started": 0.0, "host": "elsewhere"}))
    with pytest.raises(ValueError, match="elsewhere"):
        stop(StopSettings(run=str(tmp_path)))
