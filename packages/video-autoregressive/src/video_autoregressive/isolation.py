"""Decoding in a process of its own, which is killed when it takes too long.

Decoders can hang on a broken file, beyond the reach of threads and of Python's signal handlers. The process is started
fresh, not forked, takes one job after another, and starts again after a loss. A data loader's worker can use it too,
which may have no children of `multiprocessing`, and so can any process that a copy of it reaches: each starts its own.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from video_autoregressive.errors import VideoDecodeError, VideoTimeoutError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

START_S = 120.0
"""Longest start: importing torch from a slow, busy disk."""

GRACE_S = 1.0
"""The worker ends itself this long after the limit: nobody else would, were its owner killed while it hangs."""


class DecodeWorker:
    """Runs functions in another process, one at a time, with a time limit.

    Args:
        timeout_s: Longest time for one call, in seconds; starting the process and importing do not count.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = os.getpid()
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: got {timeout_s}, expected a time above 0")

    def run(
        self,
        path: str | Path,
        backend: str,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Call a function there.

        Args:
            path: The video that it reads, for messages.
            backend: Its backend, for messages.
            function: A function of a module, or a method of an object that can be pickled.
            args: Its arguments, which are pickled like the result.
            kwargs: The same.

        Raises:
            VideoTimeoutError: It took longer than the limit; the process was killed.
            VideoDecodeError: The process died, of a crash in a decoder for instance.
            Exception: What the function raised.
        """
        connection = self._connected()
        try:
            connection.send_bytes(pickle.dumps((self.timeout_s, function, args, kwargs)))
            self._await(connection, START_S, path, backend)
            connection.recv_bytes()  # it has begun: imports are over
            self._await(connection, self.timeout_s, path, backend)
            failed, result = pickle.loads(connection.recv_bytes())  # noqa: S301 from our own process
        except (EOFError, ConnectionError) as error:
            status = self._wait()
            self.close()
            raise VideoDecodeError(path, backend, f"the process that decoded it died ({status})") from error
        if failed:
            raise result
        return result

    def close(self) -> None:
        """Kill the process; the next call starts another."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __getstate__(self) -> dict[str, float]:
        """The process does not travel."""
        return {"timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, float]) -> None:
        """A worker without a process yet."""
        self.__init__(**state)

    def __del__(self) -> None:
        """Leave no process behind."""
        self.close()

    def _connected(self) -> Connection:
        if self._owner != os.getpid():  # a fork took us along; the process belongs to the parent
            self.close()
            self._owner = os.getpid()
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died between two calls, which is not the next file's fault
        if self._connection is not None:
            return self._connection
        ours, theirs = Pipe()
        command = [sys.executable, "-c", "from video_autoregressive import isolation; isolation.serve()"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._connection = ours
        return ours

    def _await(self, connection: Connection, limit_s: float, path: str | Path, backend: str) -> None:
        if not connection.poll(limit_s):
            self.close()
            raise VideoTimeoutError(path, backend, f"no answer within {limit_s:g} s")

    def _wait(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def serve() -> None:
    """The other side: answer calls until the owner is gone."""
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            timeout_s, function, args, kwargs = pickle.loads(connection.recv_bytes())  # noqa: S301 from our owner
        except EOFError:
            return
        connection.send_bytes(b"begun")  # now that what it needs is imported
        # The default action of this signal ends the process whatever its decoder is doing.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
        answer: tuple[bool, Any]
        try:
            answer = (False, function(*args, **kwargs))
        except Exception as error:
            answer = (True, error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(pickle.dumps(answer))
