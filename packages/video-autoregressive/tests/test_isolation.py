import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from video_autoregressive.errors import VideoDecodeError, VideoTimeoutError
from video_autoregressive.isolation import DecodeWorker

# A hang inside C that keeps the interpreter's lock: no thread and no signal handler of Python runs meanwhile.
HANG = "import ctypes, os, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); ctypes.PyDLL(None).sleep(60)"


@pytest.fixture
def run():
    """Calls a function in a worker with a limit of two seconds."""
    worker = DecodeWorker(2.0)
    yield partial(worker.run, "clip.mp4", "pyav")
    worker.close()


@pytest.fixture
def hang(tmp_path, monkeypatch):
    """A script that hangs."""
    monkeypatch.chdir(tmp_path)
    Path("hang.py").write_text(HANG)
    return "hang.py"


def wait_until(holds, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_calls_run_in_one_other_process(run):
    assert run(sorted, [3, 1], reverse=True) == [3, 1]
    assert run(os.getpid) == run(os.getpid) != os.getpid()


def test_what_is_raised_there_is_raised_here(run):
    with pytest.raises(ValueError, match="invalid literal"):
        run(int, "x")
    assert run(len, "abc") == 3


def test_a_hang_is_ended_and_the_next_call_works(run, hang):
    before = run(os.getpid)
    with pytest.raises(VideoTimeoutError, match=r"clip.mp4 \(pyav\): no answer within 2 s"):
        run(runpy.run_path, hang)
    assert not is_running(before)
    assert run(os.getpid) != before


@pytest.mark.parametrize(
    ("function", "args", "status"), [(os._exit, (3,), "exit status 3"), (os.abort, (), "signal SIGABRT")]
)
def test_a_crash_is_an_error_and_the_next_call_works(run, function, args, status):
    with pytest.raises(VideoDecodeError, match=rf"the process that decoded it died \({status}\)"):
        run(function, *args)
    assert run(len, "abc") == 3


def test_a_process_that_ended_between_calls_is_not_the_next_calls_fault(run):
    pid = run(os.getpid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert run(len, "abc") == 3


def test_a_worker_can_be_pickled_without_its_process():
    worker = DecodeWorker(5.0)
    pid = worker.run("a", "pyav", os.getpid)
    again = pickle.loads(pickle.dumps(worker))  # noqa: S301 our own
    assert again.timeout_s == 5.0
    assert again.run("a", "pyav", os.getpid) != pid
    worker.close()
    again.close()


def test_nothing_is_left_behind():
    worker = DecodeWorker(5.0)
    pid = worker.run("a", "pyav", os.getpid)
    del worker
    wait_until(lambda: not is_running(pid))


FORK = """
import multiprocessing, os
from video_autoregressive.isolation import DecodeWorker
worker = DecodeWorker(5.0)
pid = worker.run("a", "pyav", os.getpid)
def child(queue):
    queue.put(worker.run("a", "pyav", os.getpid))
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
process = context.Process(target=child, args=(queue,), daemon=True)
process.start()
process.join()
assert queue.get() != pid and worker.run("a", "pyav", os.getpid) == pid
"""


def test_a_forked_daemon_starts_its_own_process_and_leaves_the_parents_alone():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


OWNER = """
import os, runpy
from video_autoregressive.isolation import DecodeWorker
DecodeWorker(0.5).run("a", "pyav", runpy.run_path, "hang.py")
"""


def test_a_hanging_process_ends_itself_when_its_owner_is_killed(hang):
    # The owner stops for good before its limit passes, so that only the worker's own alarm can end the worker.
    owner = subprocess.Popen([sys.executable, "-c", OWNER])
    wait_until(lambda: Path("pid").exists() and Path("pid").read_text())
    owner.kill()
    owner.wait()
    pid = int(Path("pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_a_limit_is_needed():
    with pytest.raises(ValueError, match=r"timeout_s: got 0\.0"):
        DecodeWorker(0.0)
