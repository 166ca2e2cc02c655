"""Trains a large run from its document: checks everything first, then trains over ranks.

If the environment marks this process as one of several (torchrun, or any launcher that sets ``RANK`` and
``WORLD_SIZE``), it is a rank. Otherwise it starts ranks on this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from armillary.corpus import Corpus
from armillary.files import HOST
from armillary.goodput import EventKind, EventWriter
from armillary.launch.clusters.crashes import LostRankError
from armillary.launch.ranks.forks import launched
from armillary.launch.ranks.group import joined, meeting_place, place
from armillary.launch.ranks.local import RankContext, Supervision, start_ranks
from armillary.launch.ranks.watchdog import watched
from armillary.recipe import EVENTS, ArmillaryError, LargeRun, Layout, RunResult, RunSpec, UsageError
from armillary.resilience import FaultClock, FaultHook, Faults, FaultState
from armillary.trackers import Track, destinations
from armillary.train import check_run, lost_connection

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LEAVE_S = 10.0  # for a rank of a launcher to end after an error


def launch(
    large: LargeRun,
    folder: Path,
    *,
    nproc: int | None = None,
    max_restarts: int = 3,
    min_ranks: int | None = None,
    faults: Faults | None = None,
    reporter: Callable[[], Any],
) -> RunResult | None:
    """Train ``large`` in ``folder``, or resume it, or return its result; None on all ranks but the first.

    Starts ``nproc`` ranks on this machine (default: the number of ranks in the layout, or one). If a rank dies, freezes
    or hangs, all restart from the last checkpoint, at most ``max_restarts`` times in a row without progress. If the
    same rank is lost each time, the run continues with fewer data replicas, down to ``min_ranks`` ranks (default:
    1). The global batch and the order of the data stay the same. A launcher may start fewer ranks than the layout has
    only if ``min_ranks`` is given. ``faults`` are injected. ``reporter()`` returns the first rank's reporter. It is
    called with the stage, units done, total units and a note; ``say`` takes a line, and ``close`` ends it.

    Raises:
        UsageError: corpus, layout, run and number of ranks do not match; nothing has started.
        InterruptedRunError, DivergedError, BusyRunError, ArmillaryError: as ``train_ranks``.
    """
    if launched():
        rank, ranks = place()
        if nproc is not None:
            raise UsageError(
                f"--nproc starts ranks on this machine, but a launcher has started {ranks} already; leave it out"
            )
        if faults is not None:
            raise UsageError(
                "--inject works only with ranks that this command starts, but a launcher has started these"
            )
        meeting_place()
        if min_ranks is not None and min_ranks <= ranks:
            large = large.on_fewer(ranks)
        spec, _, _ = prepare(large, ranks)
        stopping = Stop()
        for number in SIGNALS:
            signal.signal(number, stopping.ask)
        try:
            with watched(folder, spec.id, rank) as heartbeat:
                return train_as_rank(large, folder, reporter, RankContext(stopping, heartbeat))
        except Exception as error:
            if not lost_connection(error):
                raise
            # Threads may still wait for the lost rank, and the launcher restarts this one only after its end.
            leaving = threading.Timer(_LEAVE_S, os._exit, (1,))
            leaving.daemon = True
            leaving.start()
            reason = str(error).strip().splitlines()[0]
            raise LostRankError(
                f"the connection to another rank was lost ({reason}); if the launcher restarts the ranks, they resume "
                "from the last checkpoint"
            ) from error
    ranks = nproc or (large.layout.ranks if large.layout is not None else 1)
    spec, _, layout = prepare(large, ranks)
    planned = () if faults is None else faults.plan(spec.steps, ranks)
    fewer = [smaller.ranks for smaller in layout.fewer_replicas(spec) if smaller.ranks >= (min_ranks or 1)]
    watch = Supervision(
        max_restarts,
        tuple(fewer),
        _Witness(folder / EVENTS, spec.id, reporter).report,
        (lambda context: FaultState.of(context, planned, ranks, faults.nodes))
        if faults is not None
        else lambda context: None,
        FaultClock(faults.rate) if faults is not None and faults.rate is not None else None,
        layout.compile,
    )
    result: RunResult | None = start_ranks(partial(train_as_rank, large, folder, reporter), ranks, watch)
    return result


class _Witness:
    """Writes the findings and actions of the watching process to the run's events, and shows them."""

    def __init__(self, path: Path, run: str, reporter: Callable[[], Any]) -> None:
        self.path, self.run, self.reporter = path, run, reporter

    def report(self, kind: EventKind, step: int, **data: Any) -> None:
        """Append an event that happens now, and show a line."""
        who = "the ranks" if data.get("culprit") is None else f"rank {data['culprit']}"
        message = {
            "detected": "after step {step}: {who} {how}",
            "restart": "restarting all ranks (attempt {attempt})",
            "fault": "after step {step}: fault injected into {who} ({problem})",
            "degraded": "{who} cannot be restarted: the run continues with {ranks} ranks instead of {before}",
            "straggler": "{who} is a straggler: {late_s:.3f} s late after step {step}",
        }[kind].format(step=step, who=who, **data)
        show = self.reporter()
        try:
            show.say(message)
        finally:
            show.close()
        # Before rank 0 has opened the run there is no time to account for; a full disk must not end the watching.
        if self.path.exists():
            with contextlib.suppress(ArmillaryError), EventWriter(self.path, self.run) as events:
                events.write(kind, step, **{name: value for name, value in data.items() if value is not None})


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a value that Ctrl-C or SIGTERM sets to true within the block; a second signal ends the process.

    Only the main thread gets signals; in another thread the value never changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Whether a signal has requested a stop; a second signal ends the process."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, frame: object) -> None:
        """Handle a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def prepare(large: LargeRun, ranks: int) -> tuple[RunSpec, Corpus, Layout]:
    """Open and cross-check the parts of a large run.

    Raises:
        UsageError: the corpus is missing or has another hash, the layout does not fit the ranks, or as ``check_run``.
    """
    layout = large.layout_of(ranks)
    path = Path(large.corpus)
    if not (path / "manifest.json").is_file():
        within = sorted(p.parent.name for p in path.glob("*/manifest.json"))
        hint = f"'{within[0]}' within it is one" if within else "'armillary corpus RECIPE' builds one"
        raise UsageError(f"{large.name}: corpus: {path} is not the folder of a built corpus; {hint}")
    corpus = Corpus.open(path)
    if large.run.corpus not in ("", corpus.hash):
        raise UsageError(
            f"{large.name}: run.corpus is {large.run.corpus}, but {path} is corpus {corpus.hash}; give the folder of "
            "that corpus, or leave out run.corpus"
        )
    spec = large.run.model_copy(update={"corpus": corpus.hash})
    try:
        check_run(spec, corpus, layout)
    except UsageError as error:
        raise UsageError(f"{large.name}: {error}") from error
    return spec, corpus, layout


def check_corpus(large: LargeRun, ranks: int) -> str | None:
    """Check a large run against its corpus like ``launch``, for a rehearsal on a machine that may lack the corpus.

    Returns:
        None, or a sentence on the skipped checks if the corpus is not on this machine.

    Raises:
        UsageError: as ``prepare``.
    """
    if Path(large.corpus).exists():
        prepare(large, ranks)
        return None
    return f"{large.corpus} is not on this machine, so the run was not checked against its domains and vocabulary"


def train_as_rank(large: LargeRun, folder: Path, reporter: Callable[[], Any], context: RankContext) -> RunResult | None:
    """Run as one of the ranks; the first returns the result.

    Raises:
        ArmillaryError: as ``train_ranks``.
    """
    import torch.distributed as dist

    from armillary.train import train_ranks

    rank, _ = place()
    hooks, machine = [], HOST
    if context.faults is not None and context.slot is not None:
        hooks = [FaultHook(context.faults, context.slot)]
        if context.faults.nodes is not None:
            machine = f"node-{context.faults.node(context.slot)}"
    with joined() as device:
        ranks = dist.get_world_size()
        spec, corpus, layout = prepare(large if context.slot is None else large.on_fewer(ranks), ranks)
        show = reporter() if rank == 0 else None
        total = spec.tokens

        say = show.say if show is not None else lambda text: None
        trackers = [Track(where, folder, large.name, say) for where in destinations(large.trackers, folder, large.name)]

        def tell(step: int) -> None:
            if context.heartbeat is not None:
                context.heartbeat.step(step)
            if show is not None:
                show(large.name, spec.tokens_after(step), total, f"step {step} of {spec.steps}")

        try:
            result = train_ranks(
                spec,
                corpus,
                folder,
                layout,
                checkpoints=large.checkpoints,
                skipping=large.skipping,
                device=device,
                progress=tell,
                stop=context.stop,
                tell=say,
                busy=context.heartbeat.busy if context.heartbeat is not None else lambda work: None,
                hooks=[*hooks, *trackers],
                machine=machine,
            )
        finally:
            for tracker in trackers:
                tracker.close()
            if show is not None:
                show.close()
    return result if rank == 0 else None
