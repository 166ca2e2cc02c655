"""Detects a rank that no longer runs, steps that no longer finish, and a rank that slows down the others.

The limits follow from times measured in this run; none is configured:

- *frozen*: the system has reported a rank as stopped for ``STOPPED_S``; or its heartbeat is older than ``FROZEN_S`` and
  three times the longest earlier pause, which grows on a busy machine;
- *hung*: no rank has finished a step for ``HUNG_S`` and three times the longest earlier step. Each kind of longer work
  (a validation, a checkpoint) has a separate limit. Work of a kind that has never ended in this run, such as the first
  steps, may take ``FIRST_S``;
- *straggler*: in nine of ten of the last ``SAMPLES`` steps, one rank finished last, by a tenth of a step. Ranks of a
  synchronous job leave the last collective of a step together, so a slow rank shows in the work after it.

If the watching process itself was stopped, for instance with the whole machine, that time does not count for any rank.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from armillary.resilience.heartbeats import Heartbeat

STOPPED_S, FROZEN_S, HUNG_S, FIRST_S = 0.5, 5.0, 10.0, 600.0
TIMES = 3.0  # times the longest time measured
LATE_SHARE, LATE_STEP, SAMPLES = 0.9, 0.1, 20


@dataclass(frozen=True)
class Finding:
    """A fault: ``what`` is wrong with ``rank`` (None if no single rank is the cause), and for how many seconds."""

    what: str
    rank: int | None
    silent_s: float
    limit_s: float


class Detector:
    """Checks the heartbeats of the ranks repeatedly; remembers the usual times over all attempts of a run."""

    def __init__(self) -> None:
        self._pause = 0.0  # the longest between two heartbeats
        self._longest: dict[int, float] = {}  # of each kind of work, and of a step
        self._looked = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new attempt; the usual times stay known."""
        self._excused = 0.0  # silence before this time does not count
        self._stopped: dict[int, float] = {}  # since when
        self._seen: list[Heartbeat] = []
        self._late: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        self._lengths: deque[float] = deque(maxlen=SAMPLES)
        # The last step that all ranks had finished at a check, and the time at which the first rank had finished it.
        self._complete = (-1, 0.0)

    def look(self, heartbeats: Sequence[Heartbeat], now: float, stopped: Collection[int] = ()) -> Finding | None:
        """The first fault at ``now``, or None; ``stopped`` are ranks that the system reports as stopped.

        A straggler is reported once per ``SAMPLES`` steps.
        """
        away, self._looked = now - self._looked if self._looked else 0.0, now
        if away > STOPPED_S:  # this process was stopped, so the ranks may have been too
            self._excused = now
            self._stopped = {}
        self._stopped = {rank: self._stopped.get(rank, now) for rank in stopped}
        found = self._frozen(heartbeats, now) or self._hung(heartbeats, now) or self._straggler(heartbeats)
        self._seen = list(heartbeats)
        return found

    def _frozen(self, heartbeats: Sequence[Heartbeat], now: float) -> Finding | None:
        for rank, since in self._stopped.items():
            if now - since > STOPPED_S:
                return Finding("frozen", rank, now - since, STOPPED_S)
        limit = max(FROZEN_S, TIMES * self._pause)
        for rank, heartbeat in enumerate(heartbeats):
            if not heartbeat.beat_s:
                continue
            silent = now - max(heartbeat.beat_s, self._excused)
            if silent > limit:
                return Finding("frozen", rank, silent, limit)
            before = self._seen[rank].beat_s if self._seen else 0.0
            if before and heartbeat.beat_s > before > self._excused:
                self._pause = max(self._pause, min(heartbeat.beat_s - before, limit))
        return None

    def _hung(self, heartbeats: Sequence[Heartbeat], now: float) -> Finding | None:
        for heartbeat, before in zip(heartbeats, self._seen, strict=False):
            if heartbeat.changed_s > before.changed_s > self._excused:
                took = heartbeat.changed_s - before.changed_s
                self._longest[before.busy] = max(self._longest.get(before.busy, 0.0), took)
        if not any(heartbeat.stepped_s for heartbeat in heartbeats):
            return None  # until its first step, a live process is starting
        # The ranks wait for each other, so all wait for the work that one of them began last.
        latest = max(heartbeats, key=lambda heartbeat: heartbeat.changed_s)
        longest = self._longest.get(latest.busy)
        limit = FIRST_S if longest is None else max(HUNG_S, TIMES * longest)
        silent = now - max(latest.changed_s, self._excused)
        if silent <= limit:
            return None
        least = min(heartbeat.step for heartbeat in heartbeats)
        behind = [rank for rank, heartbeat in enumerate(heartbeats) if heartbeat.step == least]
        return Finding("hung", behind[0] if len(behind) == 1 else None, silent, limit)

    def _straggler(self, heartbeats: Sequence[Heartbeat]) -> Finding | None:
        steps = {heartbeat.step for heartbeat in heartbeats}
        if len(heartbeats) < 2 or len(steps) != 1 or any(heartbeat.busy for heartbeat in heartbeats):
            return None
        times = [heartbeat.stepped_s for heartbeat in heartbeats]
        (step,), first = steps, min(times)
        before, self._complete = self._complete, (step, first)
        if step != before[0] + 1:
            return None  # the previous step was never checked with all ranks finished
        latest = max(range(len(times)), key=times.__getitem__)
        self._late.append((latest, times[latest] - median(times)))
        self._lengths.append(first - before[1])
        if len(self._late) < SAMPLES:
            return None
        rank, often = Counter(rank for rank, _ in self._late).most_common(1)[0]
        late, length = median(lateness for own, lateness in self._late if own == rank), median(self._lengths)
        if often < LATE_SHARE * SAMPLES or late < LATE_STEP * length:
            return None
        self._late.clear()
        self._lengths.clear()
        return Finding("straggler", rank, late, LATE_STEP * length)
