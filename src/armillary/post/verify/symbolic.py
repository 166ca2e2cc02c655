"""Symbolic equality of formulas by math-verify, in a separate process that is killed at its time limit.

math-verify's own limit is a signal: it works only in the main thread, and cannot interrupt a power tower such as
``9^{9^{9^9}}``, which Python would compute forever. The process reads text from models, so it also has a memory limit.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time

from armillary.recipe import ArmillaryError, UsageError

TIME_LIMIT_S = 5.0
# A longer phrase is not one formula.
_LONGEST = 400
_START_S = 120.0
_MEMORY = 3 << 30


def same_formula(gold: str, found: str) -> bool | None:
    """Whether two formulas in LaTeX or plain text are equal; None if one cannot be read within the limits.

    Raises:
        ArmillaryError: the process cannot be started.
        UsageError: math-verify is not installed.
    """
    if len(found) > _LONGEST:
        return None
    return _WORKER.ask(gold, found)


class _Worker:
    """The process, started on first use and again after a timeout."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, gold: str, found: str) -> bool | None:
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write((json.dumps([gold, found]) + "\n").encode())
                process.stdin.flush()
                answer = _line(process, TIME_LIMIT_S)
            except BrokenPipeError:
                answer = None
            if answer is None:
                self.stop()
                return None
            same: bool | None = json.loads(answer)
            return same

    def stop(self) -> None:
        process, self._process = self._process, None
        # A forked child must not use its parent's process.
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if importlib.util.find_spec("math_verify") is None:
            raise UsageError(
                "formulas are compared by math-verify, which is not installed: pip install 'armillary[teach]'"
            )
        self.stop()
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "armillary.post.verify.formulas", str(_MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        if _line(self._process, _START_S) != b"ready\n":
            self.stop()
            raise ArmillaryError(
                "the process that compares formulas did not start; run `python -m armillary.post.verify.formulas` to "
                "see why"
            )
        return self._process


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
    """The next line of output; None if the process ended, or wrote nothing within the limit."""
    assert process.stdout is not None
    descriptor, end, line = process.stdout.fileno(), time.monotonic() + limit_s, b""
    while not line.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        part = os.read(descriptor, 4096)
        if not part:
            return None
        line += part
    return line


_WORKER = _Worker()
atexit.register(_WORKER.stop)
