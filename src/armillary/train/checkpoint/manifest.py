"""The manifest of a checkpoint: lists the files, and is used to read and verify them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_jsonable_python

from armillary.files import PASSING, sync
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    RunSpec,
    counted,
    read_json,
    read_sealed,
    write_sealed,
)
from armillary.train.checkpoint.pieces import CHECKSUMS, REMEDY, PieceReader, Written, tensor_index, written_file
from armillary.train.rows import Rows

FORMAT = 4  # only for a run with skipped batches; other checkpoints use format 3, which older versions read

METRICS = "metrics.parquet"
MANIFEST = "checkpoint.json"
_OF_FORMAT_1 = ("model.safetensors", "optimizer.safetensors", METRICS)
_NAME = re.compile(r"step-(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Progress:
    """The progress of a run: the finished steps, a row of metrics for each, and the steps that took no update."""

    spec: RunSpec
    step: int
    metrics: Rows
    skipped: Mapping[int, str] = field(default_factory=dict)


def complete(hidden: Path, folder: Path, written: Iterable[Written], progress: Progress) -> None:
    """Commit the files in ``hidden`` as the checkpoint ``folder/step-N``."""
    write_manifest(hidden, written, progress)
    commit(hidden, folder, progress.step)


def write_manifest(hidden: Path, written: Iterable[Written], progress: Progress) -> None:
    """Write the metrics and the manifest of the files ``written``, which need not all be in ``hidden``."""
    progress.metrics.write(hidden / METRICS)
    files = [*written, written_file(hidden / METRICS, {})]
    skipped = {step: why for step, why in progress.skipped.items() if step <= progress.step}
    manifest = {
        "format": FORMAT if skipped else 3,
        "run": progress.spec.id,
        "prefix": progress.spec.prefix_id(progress.step),
        "step": progress.step,
        "files": {file.name: {"bytes": file.bytes, **file.checksum} for file in files},
        "tensors": tensor_index(files),
    }
    if skipped:
        manifest["skipped"] = skipped
    write_sealed(hidden / MANIFEST, to_jsonable_python(manifest))


def commit(hidden: Path, folder: Path, step: int) -> None:
    """Make the finished folder ``hidden`` the checkpoint ``folder/step-N``."""
    final = folder / f"step-{step}"
    if final.exists() or final.is_symlink():  # it cannot be a checkpoint of this run
        set_aside(final)
    hidden.rename(final)
    sync(folder)


def set_aside(path: Path) -> Path:
    """Rename ``path`` so that it does not count as a checkpoint; returns its new name, ``NAME.damaged``."""
    for number in range(1, 1000):
        target = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not target.exists() and not target.is_symlink():
            path.rename(target)
            sync(path.parent)
            return target
    raise ArmillaryError(f"{path.parent}: has 1000 damaged copies of {path.name}; move them away")


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending; other names and plain files are not counted.

    Raises:
        ArmillaryError: ``folder`` is a file or a broken link, whose target may hold checkpoints.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise ArmillaryError(
                f"{folder}: not a folder (a file, or a broken link), but it should contain the checkpoints; "
                "if it is a link, mount its target; if it is a file, move it away"
            )
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(int(name[1]) for name, path in named if name is not None and path.is_dir())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint ``path``, of any format.

    Raises:
        FileNotFoundError, DamagedFileError, ForeignFileError: as ``read_sealed``.
    """
    file = path / MANIFEST
    manifest = read_json(file, "checkpoint manifest", REMEDY)
    if manifest.get("format") != 1:  # format 1 has no seal, only checksums of its files
        manifest = read_sealed(file, "checkpoint manifest", FORMAT, REMEDY, sealed_since=2)
        if manifest["format"] > 2 and not all(isinstance(manifest.get(name), str) for name in ("run", "prefix")):
            raise ForeignFileError(
                f"{file}: checkpoint manifest of format {manifest['format']} without a run, which this version does "
                "not write; use the program that wrote it. The file was not changed"
            )
    return manifest


def verify_checkpoint(
    path: Path, run: str | None = None, part: int = 0, parts: int = 1, only: Collection[str] | None = None
) -> None:
    """Compare a checkpoint's manifest with its name and ``run``, and every file with its size and checksum.

    Several readers can divide the checksums: each computes part ``part`` of ``parts``. Every reader checks all sizes.
    Without ``run`` the checkpoint may belong to any run. ``only``: names of the files to check, for a snapshot whose
    files are spread over the memory of several machines.

    Raises:
        DamagedFileError: a file is missing, torn or changed; one line for each.
        ForeignFileError: the format is newer, or the checkpoint belongs to another run.
        ArmillaryError: a file cannot be read now, for a transient cause.
    """
    try:
        manifest = read_manifest(path)
        if run is not None and manifest.get("run", run) != run:
            raise ForeignFileError(
                f"{path}: is a checkpoint of run {manifest['run']}, not of {run}; move it back to the folder of that "
                "run. It was not changed"
            )
        if manifest["step"] != int(path.name.removeprefix("step-")):
            raise DamagedFileError(f"{path}: {MANIFEST} belongs to step {manifest['step']}; {REMEDY}")
        if manifest["format"] == 1:
            sums, sizes = {name: {"sha256": manifest["sha256"][name]} for name in _OF_FORMAT_1}, {}
        else:
            sums = {name: _checksum(file) for name, file in manifest["files"].items()}
            sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
        if only is not None:
            sums = {name: checksum for name, checksum in sums.items() if name in only}
        mine = sorted(sums)[part::parts]
        found = [(name, _difference(path / name, sizes.get(name), sums[name] if name in mine else {})) for name in sums]
        problems = [f"{path / name}: {what}; {REMEDY}" for name, what in found if what is not None]
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path / MANIFEST}: is missing; {REMEDY}") from error
    except OSError as error:
        if error.errno in PASSING:
            raise ArmillaryError(f"{error.filename or path}: cannot be read now ({error.strerror})") from error
        raise DamagedFileError(f"{error.filename or path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: {MANIFEST} is damaged; {REMEDY}") from error
    if problems:
        raise DamagedFileError("\n".join(problems))


def _checksum(file: Mapping[str, Any]) -> dict[str, str]:
    """The checksum in a file's record; KeyError if it has none that this version knows."""
    known = [name for name in CHECKSUMS if name in file]
    return {known[0]: file[known[0]]} if known else {"sha256": file["sha256"]}


def _difference(file: Path, size: int | None, checksum: Mapping[str, str]) -> str | None:
    """How a file differs from its record, or None. A size of None and an empty ``checksum`` are not compared."""
    try:
        found = file.stat().st_size
        if size is not None and found != size:
            return f"has {counted(found, 'byte')} instead of {size}"
        if any(CHECKSUMS[name](file) != value for name, value in checksum.items()):
            return "does not match its checksum"
    except FileNotFoundError:
        return "is missing"
    return None


class CheckpointReader(PieceReader):
    """A checkpoint of any format: weights under the names of the model, optimizer state as ``NAME/KEY``."""

    def __init__(self, path: Path) -> None:
        self.manifest = read_manifest(path)
        self._rows: pa.Table | None = None
        super().__init__(path, self.manifest["tensors"] if self.manifest["format"] != 1 else {})
        if self.manifest["format"] == 1:
            self._index = self._whole_files(_OF_FORMAT_1[:2])

    @property
    def skipped(self) -> dict[int, str]:
        """The steps up to this one that took no update, with the reasons."""
        return {int(step): str(why) for step, why in self.manifest.get("skipped", {}).items()}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The names and full (unsharded) shapes of the weights in the checkpoint, without the optimizer state."""
        return {name: tuple(tensor["size"]) for name, tensor in self._index.items() if "/" not in name}

    def compare(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the full (unsharded) shapes of all tensors with those of a model; reads no slice.

        Raises:
            ForeignFileError: a tensor is missing, unexpected, or of another size.
        """
        what = self.difference(sizes)
        if what is not None:
            raise ForeignFileError(
                f"{self.folder}: is a checkpoint of a different model: {what}; move it back to the folder of its run. "
                "It was not changed"
            )

    def metrics(self) -> pa.Table:
        """The metrics up to this step, a row for each.

        Raises:
            DamagedFileError: the file cannot be read, or does not have one row per step.
        """
        if self._rows is None:
            file = self.folder / METRICS
            try:
                table = pq.read_table(file)
                steps = table["step"] if "step" in table.column_names else []
            except (OSError, pa.ArrowException) as error:
                raise DamagedFileError(f"{file}: cannot be read ({error}); {REMEDY}") from error
            if len(steps) != self.manifest["step"] or not np.array_equal(steps, np.arange(1, len(steps) + 1)):
                raise DamagedFileError(
                    f"{file}: does not have one row for each of {counted(self.manifest['step'], 'step')}; {REMEDY}"
                )
            self._rows = table
        return self._rows
