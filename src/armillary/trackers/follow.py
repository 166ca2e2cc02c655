"""The process that writes metrics to one tracker while runs train: it reads run folders and keeps the tracker current.

`Follower` starts it with a `Work` as one line of JSON on standard input. That input closes when training ends or its
process dies; this process then writes the remaining metrics and exits. Each line that it prints is a JSON string for
the user.

It is a separate process with low priority so that a tracker can neither stop nor slow the training. If the tracker's
package hangs, crashes or exits, only this process is affected.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armillary.recipe import EVENTS, RESULT, ArmillaryError, BusyError
from armillary.trackers.destination import Destination
from armillary.trackers.mirror import Mirror, TrackerError, described
from armillary.trackers.source import RunFiles, is_run

LOOK_S = 2.0
LAST_S = 120.0  # after training has ended, for what is left
AGAIN_S = (5.0, 15.0, 60.0)  # until a failed tracker is tried again
SILENT_S = 60.0  # without an answer
_AGAIN_S = 0.5
_PATIENCE = 5  # looks at a file of metrics that cannot be read, which may just be replaced


@dataclass
class _Followed:
    """A run that is followed, and the state of its files at the last look that read them.

    ``again`` is whether the next look must repeat the last one: another process wrote the run, or a file was torn.
    """

    mirror: Mirror
    seen: Any = None
    unread: int = 0
    again: bool = False


@dataclass
class Work:
    """What to follow: the run in ``folder``, or with ``all_runs`` every run in it that trains after ``since_s``.

    ``export`` is the command that adds what a failed tracker lacks.
    """

    where: Destination
    folder: Path
    name: str | None
    all_runs: bool
    since_s: float
    export: str
    look_s: float = LOOK_S
    runs: dict[Path, _Followed] = field(default_factory=dict)


class Followed:
    """The loop over all runs, and the reports on the tracker."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.failed = False
        self.tries = 0
        self.busy_since: float | None = None  # of a call that has not returned
        self.ended: set[Path] = set()

    def look(self, last: bool = False) -> bool:
        """Bring every run up to date; return whether the tracker works."""
        for folder in self._folders():
            known = self.work.runs.get(folder)
            state = _state(folder)
            if known is None:
                name = self.work.name if not self.work.all_runs else None
                known = self.work.runs[folder] = _Followed(Mirror(RunFiles(folder, name), self.work.where))
            elif known.seen == state and not last and not known.again:
                continue
            if not self._act(known, known.mirror.sync):
                return False
            if known.again:
                continue
            known.seen = state
            if self.work.all_runs and (folder / RESULT).exists():
                self.ended.add(folder)
                if not self._act(known, known.mirror.close):
                    return False
                del self.work.runs[folder]
        return True

    def close(self) -> None:
        """Release all runs."""
        for known in self.work.runs.values():
            self._act(known, known.mirror.close)

    def _folders(self) -> list[Path]:
        if not self.work.all_runs:
            return [self.work.folder] if is_run(self.work.folder) else []
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.work.folder):
                path = Path(entry.path)
                if path in self.ended:
                    continue
                with contextlib.suppress(OSError):
                    if (path / EVENTS).stat().st_mtime >= self.work.since_s and is_run(path):
                        found.append(path)
        return sorted(found)

    def _act(self, known: _Followed, act: Any) -> bool:
        self.busy_since = time.monotonic()
        known.again = False
        try:
            act()
        except TrackerError as error:
            self._say_failed(str(error))
            return False
        except BusyError:  # the process of a killed training still writes what it has
            known.again = True
            return True
        except (ArmillaryError, OSError) as error:
            known.unread += 1
            known.again = known.unread < _PATIENCE
            if known.unread == _PATIENCE:
                say(f"{self.work.where.tracker}: {described(error)}; the run goes on without these metrics there")
            return True
        finally:
            self.busy_since = None
        known.unread = 0
        if self.failed:
            self.failed, self.tries = False, 0
            say(f"{self.work.where.tracker}: works again; the missing metrics are added")
        return True

    def _say_failed(self, why: str) -> None:
        self.tries += 1
        if not self.failed:
            self.failed = True
            say(
                f"{self.work.where.tracker}: {why}. Training goes on, and it is tried again; afterwards "
                f"`{self.work.export}` adds what it lacks"
            )

    @property
    def pause_s(self) -> float:
        """Seconds until the next look."""
        return AGAIN_S[min(self.tries, len(AGAIN_S)) - 1] if self.failed else self.work.look_s


def follow(work: Work) -> None:
    """Follow until standard input ends."""
    loop = Followed(work)
    threading.Thread(target=_watch, args=(loop,), daemon=True).start()
    while not _ended(0.0):
        loop.look()
        if _ended(loop.pause_s):
            break
    limit = threading.Timer(LAST_S, lambda: os._exit(1))
    limit.daemon = True
    limit.start()
    works = loop.look(last=True)
    while works and any(known.again for known in loop.work.runs.values()):
        time.sleep(_AGAIN_S)
        works = loop.look()
    if works:
        loop.close()


def say(text: str) -> None:
    """Print a line for the user, if standard output is still open."""
    with contextlib.suppress(OSError):
        _OUT.write(json.dumps(text) + "\n")
        _OUT.flush()


def _state(folder: Path) -> Any:
    """What tells two states of a run's metrics apart."""
    found = []
    for name in ("metrics.parquet", "metrics/live.parquet", "metrics", RESULT):
        with contextlib.suppress(OSError):
            stat = (folder / name).stat()
            found.append((name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return found


def _ended(seconds: float) -> bool:
    """Whether standard input has ended, or ends within ``seconds``."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def _watch(loop: Followed) -> None:
    """Say once if a call of the tracker does not return."""
    reported = False
    while not reported:
        time.sleep(1.0)
        since = loop.busy_since
        if since is not None and time.monotonic() - since > SILENT_S:
            reported = True
            say(
                f"{loop.work.where.tracker}: no answer for {SILENT_S:.0f} s. Training goes on; afterwards "
                f"`{loop.work.export}` adds what it lacks"
            )


_OUT = sys.stdout


def main() -> None:
    """Read the work from standard input and do it."""
    global _OUT  # noqa: PLW0603
    line = os.read(sys.stdin.fileno(), 1 << 16)
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the training, whose end ends this process too
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)
    # Packages print; only what `say` says is for the user.
    _OUT = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    fields = json.loads(line)
    where = Destination.from_json(fields.pop("where"))
    follow(Work(where=where, folder=Path(fields.pop("folder")), **fields))


if __name__ == "__main__":
    main()
