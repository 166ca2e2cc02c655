"""Starts the process of `follow` beside a training, and passes on what it says."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import armillary
from armillary.trackers.destination import Destination

CLOSE_S = 30.0  # training that has ended waits this long for its tracker, which may go on by itself afterwards


class Follower:
    """A process that keeps one tracker up to date with the run in ``folder``, or with ``all_runs`` those in it.

    ``name`` is what a single run is called. ``export`` is the command that adds what a failed tracker lacks. Neither a
    start nor an end that fails raises an error: `words` has it.
    """

    def __init__(
        self, where: Destination, folder: Path, name: str | None = None, *, all_runs: bool = False, export: str = ""
    ) -> None:
        self.where = where
        self._work = {
            "where": where.to_json(),
            "folder": str(folder.resolve()),
            "name": name,
            "all_runs": all_runs,
            "export": export or _export_command(where, folder),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._own: list[str] = []
        self._over = False

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._process is not None or self._over:
            return
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "armillary.trackers.follow"],  # -P: a folder here may be named wandb
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the training
                env=_environment(),
            )
            assert self._process.stdin is not None and self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
            # a second before now, since file systems round the times of files
            work: dict[str, Any] = {**self._work, "since_s": time.time() - 1.0}
            self._process.stdin.write(json.dumps(work).encode())
            self._process.stdin.flush()
        except OSError as error:
            self._fail(f"its process cannot be started ({error.strerror or error})")

    def words(self) -> list[str]:
        """Lines for the user since the last call; does not wait."""
        found, self._own = self._own, []
        process = self._process
        if process is None or process.stdout is None:
            return found
        with contextlib.suppress(OSError, ValueError):
            while data := process.stdout.read():
                self._said += data
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(str(json.loads(line)))
        if process.poll() not in (None, 0) and not self._over:
            self._fail(f"its process has ended (code {process.returncode})")
            found += self._own
            self._own = []
        return found

    def close(self) -> list[str]:
        """End the process once it has written what is left; return its last words.

        It is left to finish alone if that takes longer than ``CLOSE_S``.
        """
        process = self._process
        if process is None:
            return self.words()
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        late = False
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            late = True
        found = self.words()
        self._over = True
        if late:
            found.append(
                f"{self.where.tracker}: still writes what is left; if it does not finish, `{self._work['export']}` "
                "adds it"
            )
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        return found

    def _fail(self, why: str) -> None:
        self._over = True
        self._own.append(
            f"{self.where.tracker}: {why}. Training goes on; afterwards `{self._work['export']}` adds what it lacks"
        )


def _export_command(where: Destination, folder: Path) -> str:
    """The command that adds to the same place; its server's secrets, and ``online``, stay in the environment."""
    place = ["--at", where.place] if where.place else []
    project = [] if where.tracker == "tensorboard" else ["--project", where.project]
    return shlex.join(["armillary", "runs", "export", str(folder), "--to", where.tracker, *place, *project])


def _environment() -> dict[str, str]:
    """The environment of the process, which also finds this package where it is not installed."""
    root = Path(armillary.__file__).parents[1]
    paths = [os.environ.get("PYTHONPATH", ""), "" if root.name.endswith("-packages") else str(root)]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
