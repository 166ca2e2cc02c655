"""Where a run begins: at its last good checkpoint, at its trunk's, with given weights, or with drawn ones."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from armillary.goodput import EventKind, recent_events
from armillary.recipe import EVENTS, ArmillaryError, DamagedFileError, ForeignFileError, RunSpec, read_spec
from armillary.resilience import WINDOW
from armillary.train.checkpoint import CheckpointReader, checkpoint_steps, set_aside, verify_checkpoint
from armillary.train.engines import outline
from armillary.train.skips import read_skips
from armillary.train.start import open_start, verify_start
from armillary.train.world import by_first, together

if TYPE_CHECKING:
    from armillary.train.loop import Run


_ROUNDING = 1e-3  # of a loss: sums in another order, over all steps since the checkpoint


@dataclass(frozen=True)
class Trunk:
    """The folder of a run with the same first ``step`` steps."""

    folder: Path
    step: int


def begin(run: Run[Any], trunk: Trunk | None = None, kind: EventKind = "resume") -> None:
    """Start from the last good checkpoint or snapshot of this run, else from the trunk's, else from the beginning.

    Initial weights are those of ``spec.start``, or are drawn if the run has none; both only if no checkpoint is loaded.
    Damaged checkpoints after the last good one are set aside. Without a good one nothing is changed. ``kind`` is the
    kind of the recorded event.

    Raises:
        ForeignFileError: the newest checkpoint is of a newer format, another run or another model.
        DamagedFileError: there are checkpoints, and all are damaged.
        ArmillaryError: a checkpoint cannot be read now.
    """
    _end_pause(run)
    run.skipped = by_first(run.world, partial(read_skips, run.folder, run.spec.id))
    damaged: list[tuple[int, str]] = []
    for step, in_memory in _candidates(run):
        found = _examine(run, step, in_memory)
        if isinstance(found, CheckpointReader):
            for later, what in damaged:
                name = by_first(run.world, partial(set_aside, run.checkpoints / f"step-{later}")).name
                run.reporter.fault(
                    later, f"step-{later}", what, f"using the previous one; the damaged one is kept as {name}"
                )
            for skipped, why in found.skipped.items():
                if skipped not in run.skipped:  # the record was lost
                    run.leave_out(skipped, why)
            run.repeated = _losses_after(run, step) if run.world.rank == 0 else {}
            _load(run, found, step)
            run.reporter.write(kind, step, **run.engine.described, source="memory" if in_memory else "disk")
            if run.peers is not None:
                run.peers.forget_after(step)
            run.catch_up()
            return
        if not in_memory:
            damaged.append((step, found))
        else:  # a snapshot, which is not kept
            if run.peers is not None:
                run.peers.forget_after(step - 1)
            elif run.memory is not None:
                by_first(run.world, partial(shutil.rmtree, run.memory / f"step-{step}", ignore_errors=True))
            run.reporter.fault(step, f"step-{step}", found, "using the previous one")
    if damaged:
        count = f"all {len(damaged)} checkpoints are" if len(damaged) > 1 else "the only checkpoint is"
        raise DamagedFileError(
            f"{run.checkpoints}: {count} damaged: {damaged[0][1]}; or move the step-* folders away to train the "
            "run from the beginning. Nothing was changed"
        )
    # A trunk as long as the run cannot be branched from, and lacks the last validation.
    if trunk is not None and trunk.step < run.spec.steps:
        path = trunk.folder / "checkpoints" / f"step-{trunk.step}"
        try:
            reader = _open_trunk(run.spec, trunk, path)
        except (ArmillaryError, OSError) as error:
            _begin_anew(run)
            run.reporter.fault(0, f"{trunk.folder.name}/{path.name}", str(error), "the run starts at step 0")
            return
        _load(run, reader, trunk.step)
        run.reporter.write("start", trunk.step, trunk=trunk.folder.name)
        run.catch_up()
        return
    _begin_anew(run)


def _end_pause(run: Run[Any]) -> None:
    """Report the time since an orderly stop, if that was the last event of this rank."""
    last = recent_events(run.reporter.events.path, 2**12)[-1:]
    if last and last[0].kind == "stop":
        run.reporter.write("pause", last[0].step, max(0.0, time.time() - last[0].time_s))


def _candidates(run: Run[Any]) -> list[tuple[int, bool]]:
    """Steps of all checkpoints and snapshots, and whether each is in memory, the newest first."""
    found = [(step, False) for step in by_first(run.world, partial(checkpoint_steps, run.checkpoints))]
    if run.peers is not None:
        found += [(step, True) for step in run.peers.steps()]
    elif run.memory is not None:
        found += [(step, True) for step in by_first(run.world, partial(checkpoint_steps, run.memory))]
    return sorted(found, reverse=True)


def _begin_anew(run: Run[Any]) -> None:
    """Load or draw the engine's initial weights.

    Raises:
        DamagedFileError, ForeignFileError, ArmillaryError: as ``open_start``; on all ranks.
    """
    run.metrics.clear()
    run.judge.restore(0, ())
    run.step = run.began = 0
    start = run.spec.start
    if start is None:
        run.engine.draw_weights()
        run.reporter.write("start", 0, **run.engine.described)
        return
    by_first(run.world, partial(verify_start, start, run.folder.parent))
    together(run.world, lambda: run.engine.load_weights(open_start(start, run.folder.parent, run.spec.model)))
    run.reporter.write("start", 0, **run.engine.described, weights=start.sha256)


def _examine(run: Run[Any], step: int, in_memory: bool) -> CheckpointReader | str:
    """The reader of a checkpoint or snapshot, or a description of its damage; the ranks divide its files.

    Raises:
        ArmillaryError: it is not for this run, or cannot be read now; on all ranks.
    """
    problem: ArmillaryError | None = None
    reader = None
    path = (run.memory if in_memory and run.memory is not None else run.checkpoints) / f"step-{step}"
    part, parts, only = run.world.rank, run.world.size, None
    try:
        if in_memory and run.peers is not None:
            only = run.peers.fetch(step, run.engine.needed)
            part, parts = run.peers.ranks.index(run.world.rank), len(run.peers.ranks)
        if not path.is_dir():
            raise ArmillaryError(
                f"{path}: rank {run.world.rank} cannot see this checkpoint; the run's folder must be on "
                "storage that all ranks share"
            )
        verify_checkpoint(path, run.spec.id, part, parts, only)
        reader = _open(run.spec, path, step)
        trained = [skipped for skipped in run.skipped if skipped <= step and skipped not in reader.skipped]
        if trained:
            problem = DamagedFileError(f"{path}: was trained on the batch of step {trained[0]}, which is now skipped")
    except ArmillaryError as error:
        problem = error
    found = [other for other in run.world.collect(problem) if other is not None]
    for other in found:
        if not isinstance(other, DamagedFileError) and not in_memory:  # without a snapshot there are checkpoints
            raise other
    return reader if reader is not None and not found else str(found[0])


def _open(spec: RunSpec, path: Path, step: int) -> CheckpointReader:
    """Compare a checkpoint with the run: sizes of tensors, and the settings of the steps in its metrics.

    Raises:
        ForeignFileError: it belongs to another model or run.
    """
    reader = CheckpointReader(path)
    reader.compare({name: tuple(tensor.shape) for name, tensor in outline(spec).state_dict().items()})
    last = reader.metrics().slice(max(0, step - 1)).to_pylist()
    if last and "run" not in reader.manifest:  # formats 1 and 2 hold nothing else of the run
        tokens, rate = spec.tokens_after(step), spec.lr(step - 1)
        if last[0]["tokens"] != tokens or not math.isclose(last[0]["lr"], rate, rel_tol=1e-6):
            raise ForeignFileError(
                f"{path}: is a checkpoint of another run: after {last[0]['tokens']:,} tokens at the rate "
                f"{last[0]['lr']:.6g}, but this run after {tokens:,} at {rate:.6g}. It was not changed"
            )
    return reader


def _open_trunk(spec: RunSpec, trunk: Trunk, path: Path) -> CheckpointReader:
    """The trunk's checkpoint; ArmillaryError if it is not the state of this run after the same number of steps."""
    verify_checkpoint(path)
    reader = _open(spec, path, trunk.step)
    manifest = reader.manifest
    if reader.skipped:
        raise ForeignFileError(f"{path}: step {min(reader.skipped)} was skipped, but this run skips no batches")
    prefix = manifest["prefix"] if "prefix" in manifest else read_spec(trunk.folder).prefix_id(trunk.step)
    if prefix != spec.prefix_id(trunk.step):
        raise ForeignFileError(f"{path}: the first {trunk.step} steps belong to another run")
    return reader


def _losses_after(run: Run[Any], step: int) -> dict[int, tuple[float, float]]:
    """The reported losses of later steps, which the run now repeats, and by how much the repeated ones may differ.

    On a CPU with the same layout they are equal; otherwise sums have another order.
    """
    layout, losses = None, {}
    for event in recent_events(run.folder / EVENTS):
        if event.kind in ("start", "resume", "restored"):
            layout = event.data.get("layout")
        elif event.kind == "progress" and event.step > step and isinstance(loss := event.data.get("loss"), float):
            exact = run.engine.device.type == "cpu" and layout == run.engine.described.get("layout", layout)
            losses[event.step] = loss, 0.0 if exact and layout is not None else _ROUNDING * abs(loss)
    return losses


def _load(run: Run[Any], reader: CheckpointReader, step: int) -> None:
    def read() -> pa.Table:
        run.engine.load(reader)
        return reader.metrics()

    rows = together(run.world, read)  # on some ranks alone the read may succeed
    # A trunk is validated at its last step; a branch continues from that step without a validation.
    run.metrics.restore(rows, lambda step: run.spec.validation.due(step, run.spec.steps))
    losses = rows["loss"].drop_null()
    run.judge.restore(step, losses.slice(max(0, len(losses) - WINDOW)).to_pylist())
    run.step = run.began = step
