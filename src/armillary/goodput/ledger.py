"""The ledger of a run's time: every moment of every rank belongs to exactly one account.

The ledger reads only events: of a live run, of one with injected faults, or of a simulated one (contract 3). It moves a
cursor along the events of a rank. An event with a duration claims the time before it. The time between two claims goes
to an account by the rank's state. So the accounts sum to the elapsed time for any events: torn, overlapping, of two
attempts at once, or of a clock that was set back (the cursor never moves back). All sums are whole nanoseconds. A rank
counts in the attempts that include it, by the ``ranks`` of their first events.

The report prints these definitions:

- goodput: time of steps that count in the final model / elapsed time. Steps after the checkpoint that the run resumed
  from are taken twice; the first time is ``replayed``. The time of a step beyond 1.1 times the usual is ``degraded``;
  the usual time is that of steps with all ranks.
- effective training time, as published runs define it (Llama 3, ByteRobust): elapsed time minus start-up, replayed
  work, detection, restarts, waiting and pauses. Checkpoints, validations and slow steps count as effective there.

Trade-offs: the trainer reports several steps at once. So unreported work that a kill lost, and the time until its
detection, can only be separated if a ``fault`` event has the time of the fault.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from armillary.goodput.events import Event, event_files, read_events
from armillary.recipe import UsageError

Account = Literal[
    "productive", "degraded", "data_wait", "replayed", "evaluation", "checkpoint", "compile", "start_up", "detection",
    "restart", "waiting", "paused", "other",
]  # fmt: skip
ACCOUNTS: tuple[Account, ...] = get_args(Account)
# The accounts that published figures of effective training time exclude.
_DOWN: tuple[Account, ...] = ("start_up", "replayed", "detection", "restart", "waiting", "paused", "other")
USUAL = 1.1  # a step is slow beyond this many times the usual time

DEFINITION = (
    "goodput: time of steps that count in the final model / elapsed time. effective training time: elapsed time "
    "without start-up, replayed work, detection, restarts, waiting, pauses and unexplained time / elapsed time"
)

_CLAIMS: dict[str, Account] = {
    "validation": "evaluation",
    "checkpoint": "checkpoint",
    "snapshot": "checkpoint",
    "checkpoint_begin": "checkpoint",
    "compile": "compile",
    "pause": "paused",
}
_RUNNING: tuple[Account, ...] = ("other", "checkpoint")  # the states of a rank between two claims of an attempt
_ATTEMPT = ("start", "resume", "restored")
_SHARED = ("detected", "restart", "degraded")
_NS = 1_000_000_000
_LARGEST = 1e12


_MEASUREMENT: dict[Account, str] = {
    "start_up": "PROGRAM_STARTUP",
    "compile": "PROGRAM_STARTUP",
    "data_wait": "DATA_LOADING_SYNC",
    "checkpoint": "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME",
    "replayed": "WASTED_PROGRESS_FROM_DISRUPTION",
    "detection": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "restart": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "waiting": "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION",
    "evaluation": "CUSTOM_BADPUT_EVENTS",
}


@dataclass(frozen=True)
class Span:
    """A span of a rank's time, in nanoseconds since the Unix epoch."""

    begin_ns: int
    end_ns: int
    account: Account


@dataclass(frozen=True)
class Ledger:
    """The accounts of a run over all its ranks, with counts of its faults and restarts.

    ``seconds`` are means over the ranks and sum to ``elapsed_s``. ``detection_s`` and ``recovery_s`` hold one value per
    fault: the time to its detection, and from there to the next finished step. ``spans`` has a list per rank.
    ``accelerators`` is the number in a simulated cluster, whose events are in one file; None for a run of this program.
    """

    elapsed_s: float
    seconds: dict[Account, float]
    ranks: int
    restarts: int
    faults: int
    detection_s: tuple[float, ...]
    recovery_s: tuple[float, ...]
    replayed_steps: int
    skipped_batches: int
    spans: dict[int, tuple[Span, ...]] = field(repr=False)
    accelerators: int | None = None

    @property
    def goodput(self) -> float | None:
        """Share of the elapsed time in steps that count; None if no time has passed."""
        return self.seconds["productive"] / self.elapsed_s if self.elapsed_s else None

    @property
    def effective(self) -> float | None:
        """Effective training time as published runs define it, as a share; None if no time has passed."""
        down = sum(self.seconds[account] for account in _DOWN)
        return 1 - down / self.elapsed_s if self.elapsed_s else None

    def measurement_names(self) -> dict[str, Any]:
        """Seconds under the names of Google's ``ml-goodput-measurement`` 0.2, as its ``goodput_time``, ``badput_time``
        and ``total_elapsed_time``.

        Several accounts can have one name there. What that library does not know (evaluation, slow steps, pauses) is
        ``CUSTOM_BADPUT_EVENTS`` or ``OTHER``.
        """
        badput: dict[str, float] = {}
        for account, seconds in self.seconds.items():
            if account != "productive":
                name = _MEASUREMENT.get(account, "OTHER")
                badput[name] = badput.get(name, 0.0) + seconds
        return {
            "goodput_time": {"TOTAL": self.seconds["productive"]},
            "badput_time": badput,
            "total_elapsed_time": self.elapsed_s,
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "goodput": self.goodput,
            "effective_training_time": self.effective,
            "elapsed_s": self.elapsed_s,
            "productive_s": self.seconds["productive"],
            "losses_s": {account: value for account, value in self.seconds.items() if account != "productive"},
            "ranks": self.ranks,
            "accelerators": self.accelerators,
            "faults": self.faults,
            "restarts": self.restarts,
            "detection_s": list(self.detection_s),
            "recovery_s": list(self.recovery_s),
            "replayed_steps": self.replayed_steps,
            "skipped_batches": self.skipped_batches,
            "ml_goodput_measurement": self.measurement_names(),
            "definition": DEFINITION,
        }


def read_ledger(path: Path, until_s: float | None = None) -> Ledger:
    """The ledger of a run's folder, or of one file of events.

    ``until_s``: the end of the count for a live run, in seconds since the Unix epoch; by default the last event.

    Raises:
        UsageError: there are no events.
        DamagedFileError, ForeignFileError: as ``read_events``.
    """
    files = event_files(path) if path.is_dir() else {0: path}
    try:
        streams = {rank: list(read_events(file)) for rank, file in files.items()}
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; give the folder of a run, or a file of events") from error
    if not any(streams.values()):
        raise UsageError(f"{path}: has no events yet, or is not a file of events")
    return ledger(streams, until_s)


def ledger(streams: dict[int, list[Event]], until_s: float | None = None) -> Ledger:
    """The ledger of each rank's events in the order of writing; at least one event.

    Every rank covers the same time: from the first event of any rank to the last, or to ``until_s``.
    """
    streams = _aligned({rank: _in_order(events) for rank, events in streams.items() if events})
    first = min(_begin_ns(event) for events in streams.values() for event in events)
    last = max(_ns(event.time_s) for events in streams.values() for event in events)
    end = max(last, _ns(until_s) if until_s is not None else last)
    merged = list(heapq.merge(*streams.values(), key=lambda event: event.time_s))
    # Events of a supervisor apply to all ranks, also to one that was killed and wrote nothing.
    shared = [event for event in merged if event.kind in _SHARED]
    spans, replayed = {}, 0
    for rank, events in streams.items():
        own = [event for event in events if event.kind not in _SHARED]
        timeline = _Timeline(first)
        for event in heapq.merge(own, shared, key=lambda event: event.time_s):
            timeline.take(event)
        spans[rank] = timeline.finish(end)
        replayed = max(replayed, timeline.replayed_steps)
    attempts = _attempts(streams, first, end)
    spans = {rank: _within(own, [one for one in attempts if rank in one.ranks]) for rank, own in spans.items()}
    detection, recovery = _reactions(merged)
    return Ledger(
        elapsed_s=(end - first) / _NS,
        seconds=_means(spans, attempts),
        ranks=len(streams),
        restarts=_restarts(streams, merged),
        faults=sum(event.kind == "fault" for event in merged),
        detection_s=tuple(detection),
        recovery_s=tuple(recovery),
        replayed_steps=replayed,
        skipped_batches=max(
            (
                sum(round(_number(e, "batches", 1)) for e in events if e.kind == "skipped")
                for events in streams.values()
            ),
            default=0,
        ),
        spans=spans,
        accelerators=next((round(_number(e, "accelerators", 1)) for e in merged if "accelerators" in e.data), None),
    )


@dataclass(frozen=True)
class _Attempt:
    """A span with the same ``ranks``. There is at least one, and they follow each other without a gap."""

    begin_ns: int
    end_ns: int
    ranks: frozenset[int]


def _attempts(streams: dict[int, list[Event]], first: int, end: int) -> list[_Attempt]:
    """The whole time, divided by the ranks that took part according to the lowest rank's events."""
    changes: list[tuple[int, frozenset[int]]] = []
    for event in streams[min(streams)]:
        count = event.data.get("ranks")
        if event.kind in ("start", "resume") and isinstance(count, int) and not isinstance(count, bool):
            ranks = frozenset(rank for rank in streams if rank < count) or frozenset(streams)
            if not changes or changes[-1][1] != ranks:
                changes.append((_ns(event.time_s), ranks))
    if not changes:
        return [_Attempt(first, end, frozenset(streams))]
    begins = [first, *(max(first, time_ns) for time_ns, _ in changes[1:])]
    return [
        _Attempt(begin, until, ranks)
        for begin, until, (_, ranks) in zip(begins, [*begins[1:], end], changes, strict=True)
    ]


def _within(spans: Sequence[Span], attempts: Sequence[_Attempt]) -> tuple[Span, ...]:
    """The parts of ``spans`` inside ``attempts``; both are in order."""
    kept, place = [], 0
    for span in spans:
        while place < len(attempts) and attempts[place].end_ns <= span.begin_ns:
            place += 1
        for attempt in attempts[place:]:
            if attempt.begin_ns >= span.end_ns:
                break
            begin, until = max(span.begin_ns, attempt.begin_ns), min(span.end_ns, attempt.end_ns)
            if until > begin:
                kept.append(Span(begin, until, span.account))
    return tuple(kept)


def _means(spans: dict[int, tuple[Span, ...]], attempts: Sequence[_Attempt]) -> dict[Account, float]:
    """Seconds of each account, as a mean over the ranks that took part at each time."""
    sums: dict[Account, float] = dict.fromkeys(ACCOUNTS, 0.0)
    for count in {len(attempt.ranks) for attempt in attempts}:
        alike = [attempt for attempt in attempts if len(attempt.ranks) == count]
        whole: dict[Account, int] = dict.fromkeys(ACCOUNTS, 0)
        for rank, own in spans.items():
            for span in _within(own, [attempt for attempt in alike if rank in attempt.ranks]):
                whole[span.account] += span.end_ns - span.begin_ns
        for account, value in whole.items():
            sums[account] += value / count / _NS
    return sums


def _ns(time_s: float) -> int:
    return round(time_s * _NS)


def _number(event: Event, name: str, default: float) -> float:
    """A value of ``data``; ``default`` if it is missing or not a plausible number of seconds."""
    value = event.data.get(name)
    return value if isinstance(value, int | float) and 0 <= value <= _LARGEST else default


def _begin_ns(event: Event) -> int:
    return _ns(event.time_s) - _ns(event.duration_s or 0.0)


def _aligned(streams: dict[int, list[Event]]) -> dict[int, list[Event]]:
    """``streams`` with all times converted to the clock of the lowest rank.

    Ranks of a synchronous job finish a step together. So the median difference between their reports of the same steps
    is the difference of their clocks. A rank that shares no step with the lowest keeps its own.
    """
    reference = _reports(streams[min(streams)])
    aligned = {}
    for rank, events in streams.items():
        own = _reports(events)
        shared = [own[report] - reference[report] for report in own.keys() & reference.keys()]
        ahead = median(shared) if shared else 0.0
        aligned[rank] = [e.model_copy(update={"time_s": e.time_s - ahead}) for e in events] if ahead else events
    return aligned


def _reports(events: Sequence[Event]) -> dict[tuple[int, int], float]:
    """The time of each report, by the step and the number of its earlier reports."""
    times: dict[tuple[int, int], float] = {}
    seen: Counter[int] = Counter()
    for event in events:
        if event.kind == "progress":
            times[event.step, seen[event.step]] = event.time_s
            seen[event.step] += 1
    return times


def _in_order(events: Sequence[Event]) -> list[Event]:
    """``events`` with non-decreasing times: after a clock was set back, an event keeps the time of the previous one."""
    ordered, latest = [], float("-inf")
    for event in events:
        latest = max(latest, event.time_s)
        ordered.append(event if event.time_s == latest else event.model_copy(update={"time_s": latest}))
    return ordered


@dataclass
class _Steps:
    """Steps that one ``progress`` event reports: those after ``first`` up to ``last``."""

    begin_ns: int
    end_ns: int
    first: int
    last: int
    wait_ns: int
    reduced: bool = False  # with fewer ranks than planned


class _Timeline:
    """The cursor over the events of one rank."""

    def __init__(self, begin_ns: int) -> None:
        self.cursor = begin_ns
        self.state: Account = "start_up"
        self.replayed_steps = 0
        self._attempts = 0
        self._reduced: int | None = None  # the number of ranks that the run continues with
        self._step = 0
        self._wait = 0
        self._steps: list[_Steps] = []
        self._spans: list[Span] = []

    def take(self, event: Event) -> None:
        """Account for the time up to ``event``."""
        kind, now = event.kind, _ns(event.time_s)
        if kind == "progress":
            self._progress(event, now)
        elif kind == "data_wait":
            self._wait += _ns(event.duration_s or 0.0)  # part of the time in the next progress event
        elif kind in _CLAIMS:
            self._work(event, now)
        elif kind in _ATTEMPT:
            self._attempt(event, now)
        elif kind == "fault" and ends_training(event):
            if self.state == "other":  # between two progress events: work that was lost before it was reported
                self._claim(now, "replayed")
            self._fill(now)
            self.state = "detection"
        elif kind == "detected":
            if self.state in _RUNNING:
                self.state = "detection"
            self._fill(now)
            self.state = "restart"
        elif kind == "degraded":
            self._reduced = round(_number(event, "ranks", 1))
        elif kind == "restart":
            self._fill(now)
            self.state = "waiting" if event.data.get("waiting") else "restart"
        elif kind in ("stop", "end"):
            self._fill(_begin_ns(event))
            self._claim(now, "checkpoint")  # the last checkpoint, or the final weights
            self.state = "paused"

    def finish(self, end_ns: int) -> tuple[Span, ...]:
        """The spans of the whole time up to ``end_ns``, in order and without a gap."""
        self._fill(end_ns)
        usual = _usual([steps for steps in self._steps if not steps.reduced] or self._steps)
        for steps in self._steps:
            wait = min(steps.wait_ns, steps.end_ns - steps.begin_ns)
            slow = max(0, steps.end_ns - steps.begin_ns - wait - round(USUAL * usual * (steps.last - steps.first)))
            good = steps.end_ns - wait - slow
            self._span(steps.begin_ns, good, "productive")
            self._span(good, good + slow, "degraded")
            self._span(good + slow, steps.end_ns, "data_wait")
        return tuple(sorted(self._spans, key=lambda span: span.begin_ns))

    def _progress(self, event: Event, now: int) -> None:
        begin = max(self.cursor, _begin_ns(event))
        self._fill(begin)
        wait, self._wait = self._wait + _ns(_number(event, "data_wait_s", 0.0)), 0
        if event.step > self._step and now > self.cursor:
            reduced = self._reduced is not None
            self._steps.append(_Steps(self.cursor, now, self._step, event.step, wait, reduced))
            self.cursor = now
        else:  # no step is in it
            self._claim(now, "other")
        self._step, self.state = event.step, "other"

    def _work(self, event: Event, now: int) -> None:
        """Account for work other than steps. Without a duration, ``checkpoint_begin`` begins it; others say nothing."""
        if event.duration_s is None:
            if event.kind == "checkpoint_begin" and self.state == "other":
                self._fill(now)
                self.state = "checkpoint"
            return
        self._fill(_begin_ns(event))
        self._claim(now, _CLAIMS[event.kind])
        if event.kind == "pause" and self.state == "paused":
            self.state = "restart"  # the run reads its checkpoint
        elif self.state == "checkpoint":
            self.state = "other"

    def _attempt(self, event: Event, now: int) -> None:
        """Begin a new attempt after ``event.step`` steps; later steps of earlier attempts are repeated."""
        if self.state in _RUNNING:
            self.state = "restart"  # the previous attempt ended without an event
        self._fill(now)
        kept = []
        for steps in self._steps:
            if steps.last <= event.step:
                kept.append(steps)
                continue
            first = max(steps.first, event.step)
            self.replayed_steps += steps.last - first
            length = steps.end_ns - steps.begin_ns
            cut = steps.end_ns - length * (steps.last - first) // (steps.last - steps.first)
            if first > steps.first:
                wait = steps.wait_ns * (first - steps.first) // (steps.last - steps.first)
                kept.append(_Steps(steps.begin_ns, cut, steps.first, first, wait, steps.reduced))
            self._span(cut if first > steps.first else steps.begin_ns, steps.end_ns, "replayed")
        self._steps = kept
        if self._reduced is not None and _number(event, "ranks", 0) > self._reduced:
            self._reduced = None
        self.state = "start_up" if self._attempts == 0 and event.kind != "restored" else "restart"
        self._attempts += event.kind != "restored"
        self._step, self._wait = event.step, 0

    def _fill(self, until_ns: int) -> None:
        self._claim(until_ns, self.state)

    def _claim(self, until_ns: int, account: Account) -> None:
        self._span(self.cursor, until_ns, account)
        self.cursor = max(self.cursor, until_ns)

    def _span(self, begin_ns: int, end_ns: int, account: Account) -> None:
        if end_ns > begin_ns:
            self._spans.append(Span(begin_ns, end_ns, account))


def _usual(portions: Iterable[_Steps]) -> float:
    """The median time of a step in nanoseconds, weighted by steps."""
    paces = sorted(
        ((p.end_ns - p.begin_ns - min(p.wait_ns, p.end_ns - p.begin_ns)) / (p.last - p.first), p.last - p.first)
        for p in portions
    )
    half, taken = sum(steps for _, steps in paces) / 2, 0
    for pace, steps in paces:
        taken += steps
        if taken >= half:
            return pace
    return 0.0


def ends_training(fault: Event) -> bool:
    """Whether a fault stops the steps; an unusable checkpoint or file does not."""
    return "checkpoint" not in fault.data and "file" not in fault.data and fault.data.get("ends") is not False


def _restarts(streams: dict[int, list[Event]], merged: list[Event]) -> int:
    """The number of attempts after the first, by the supervisor's count if there is one."""
    ordered = sum(event.kind == "restart" for event in merged)
    begun = max(sum(event.kind in ("start", "resume") for event in events) for events in streams.values())
    return max(ordered, begun - 1)


def _reactions(merged: list[Event]) -> tuple[list[float], list[float]]:
    """Seconds from each fault to its detection, and from there to the next finished step."""
    detection, recovery = [], []
    fault_s: float | None = None
    down_s: float | None = None
    begun = False
    for event in merged:
        if event.kind == "fault" and ends_training(event):
            fault_s = event.time_s if fault_s is None else fault_s
            down_s = event.time_s if down_s is None else down_s
            begun = False
        elif event.kind == "detected":
            silent = event.data.get("silent_s")
            if fault_s is not None:
                detection.append(event.time_s - fault_s)
            elif silent is not None:
                detection.append(_number(event, "silent_s", 0.0))
            fault_s, down_s, begun = None, event.time_s, False
        elif event.kind in _ATTEMPT:
            begun = down_s is not None
        elif event.kind in ("running", "progress") and begun and down_s is not None:
            recovery.append(event.time_s - down_s)
            fault_s, down_s, begun = None, None, False
    return detection, recovery
