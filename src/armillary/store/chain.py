"""The journal of a store: the order of all records, each entry sealed with the hash of the previous one.

Predictions, first starts of runs, results, outcomes of stages and verdicts of all processes are numbered 1, 2, 3 in one
sequence. An entry holds the hash of its record and the hash of the previous entry, so a row that was changed, removed
or inserted by hand no longer fits. The numbers show that a prediction came before its run. The wall clock, which can be
set back, is recorded too.

Trade-off: the database's owner can rewrite the whole journal with matching hashes, or cut off its end. Only an external
copy of the head hash (a commit, a mail, a timestamp service) detects that, so publish ``Chain.head``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from armillary.store.schema import journal

FIRST = "0" * 64  # the first entry's value for the previous hash
_SKEW_S = 1.0  # tolerated difference between clocks of machines that share a store


@dataclass(frozen=True)
class Entry:
    """One entry: the ``kind`` of a record about ``run``, with hashes and times in ``about``.

    Kinds: ``chain`` (the beginning of the journal, with the records of an older store), ``prediction``, ``start``
    (first attempt), ``result``, ``stage`` (an outcome; ``run`` is then the hash of the stage's inputs), ``verdict``,
    ``reopened`` (the run is to be trained again) and ``repeated`` (it was, and whether the result was the same).
    """

    seq: int
    kind: str
    run: str
    recorded_at: float
    about: dict[str, Any]
    previous: str
    sha256: str

    @property
    def right(self) -> str:
        """The hash of this content."""
        return digest([self.seq, self.kind, self.run, self.recorded_at, self.about, self.previous])


@dataclass(frozen=True)
class Chain:
    """A journal that was read.

    ``problems`` has one line per mismatch; ``clock`` lists entries that are earlier than their predecessor.
    """

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    clock: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether every entry matches its predecessor and its record."""
        return not self.problems

    @property
    def head(self) -> str:
        """The hash of the last entry, which seals all of them."""
        return self.entries[-1].sha256 if self.entries else FIRST

    def of(self, kind: str, run: str) -> Entry | None:
        """The last entry of that kind on ``run``, or None."""
        return next((entry for entry in reversed(self.entries) if (entry.kind, entry.run) == (kind, run)), None)


def digest(value: Any) -> str:
    """64 hexadecimal digits of the SHA-256 of ``value`` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def append(db: sa.Connection, kind: str, run: str, now: float, **about: Any) -> None:
    """Add an entry in the transaction that records its subject; no other writer may have an open transaction."""
    last = db.execute(sa.select(journal.c.seq, journal.c.sha256).order_by(journal.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.sha256) if last is not None else (1, FIRST)
    entry = Entry(seq, kind, run, now, json.loads(json.dumps(about)), previous, "")
    db.execute(sa.insert(journal).values(**{**entry.__dict__, "sha256": entry.right}))


def read(db: sa.Connection, run: str | None = None) -> tuple[Entry, ...]:
    """All entries in their order, or those on ``run``."""
    query = sa.select(journal).order_by(journal.c.seq)
    rows = db.execute(query if run is None else query.filter_by(run=run)).mappings()
    # Any other value was written by hand, and does not have the hash of the entry.
    return tuple(Entry(**{**row, "about": row["about"] if isinstance(row["about"], dict) else {}}) for row in rows)


def broken(entries: Iterable[Entry]) -> list[str]:
    """The mismatches within the journal itself."""
    problems, previous, number = [], FIRST, 0
    for entry in entries:
        if entry.seq != number + 1:
            problems.append(f"journal: entries {number + 1} to {entry.seq - 1} were removed")
        elif entry.previous != previous:
            problems.append(f"journal: entry {entry.seq} does not follow the one before it: one of them was changed")
        if entry.sha256 != entry.right:
            problems.append(f"journal: entry {entry.seq} ({entry.kind} of run {entry.run}) was changed")
        previous, number = entry.sha256, entry.seq
    return problems


def set_back(entries: Iterable[Entry]) -> list[str]:
    """The entries at which the clock went back."""
    found, before = [], float("-inf")
    for entry in entries:
        if entry.recorded_at < before - _SKEW_S:
            found.append(
                f"journal: the clock of entry {entry.seq} ({entry.kind} of run {entry.run}) is "
                f"{before - entry.recorded_at:.0f} s behind the entry before it; the order is that of the numbers"
            )
        before = entry.recorded_at
    return found
