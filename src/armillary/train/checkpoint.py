"""Checkpoints of one run: all that training needs to resume, in pieces that any layout can read.

A checkpoint is a folder ``step-N``::

    rank-00000.safetensors   the pieces of weights and optimizer state that this rank is the first to hold
    metrics.parquet          the metrics so far
    checkpoint.json          format, run, step, size and SHA-256 of every file, which pieces make up each tensor, and a
                             hash of all that

The manifest is written last and the folder is written aside and then renamed, so a checkpoint is there whole or not at
all. Reading one has three outcomes. It is good; it is damaged (a torn disk, a flipped bit: ``DamagedFileError``); or
it is not for this run (a newer format, another run, a model of other sizes: ``ForeignFileError``). A damaged one is
renamed ``step-N.damaged``, never removed; nothing but a checkpoint of the run itself is ever removed, and what stands
beside under other names (``step-7.bak``) is left alone. There is no saved state of the data loader and none of a
random generator: the batches are a function of the step (contract 2), and nothing in a step is random.

A rank reads of each tensor the slices it needs, whichever rank wrote them, so a run resumes under another layout, or on
one device. Formats 1 (whole tensors of one process) and 2 (without the run) are still read.

Trade-off: this is not ``torch.distributed.checkpoint``. Its index is a pickle, which runs code when it is read; its
safetensors writer leaves no index at all, so that a lost file looks like a smaller tensor, and neither has checksums.
The pieces are those that DTensor names, which is what it would have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from armillary.files import HOST, PASSING, aside, sync
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
from armillary.train.rows import Rows
from armillary.train.writing import writing

FORMAT = 3

_ABANDONED_S = 3600.0
_METRICS = "metrics.parquet"
_MANIFEST = "checkpoint.json"
_OF_FORMAT_1 = ("model.safetensors", "optimizer.safetensors", _METRICS)
_NAME = re.compile(r"step-(0|[1-9][0-9]*)")
_HIDDEN = re.compile(r"\.step-([0-9]+)\.(.+)")
_REMEDY = "restore it from a copy"


# Bytes of a number, by the name that safetensors has for its type.
_KINDS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Piece:
    """``values``: the part of a tensor of ``size`` that begins at ``offset``."""

    values: Tensor
    size: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint: size, checksum, and for each of its pieces the whole tensor's size and the offset."""

    name: str
    bytes: int
    sha256: str
    pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    """Tensors that are not divided."""
    return {name: Piece(t, tuple(t.shape), (0,) * t.ndim) for name, t in tensors.items()}


def write_pieces(folder: Path, rank: int, pieces: Mapping[str, Piece]) -> Written:
    """Write what ``rank`` has to write into ``folder`` and bring it to the disk."""
    path = folder / f"rank-{rank:05}.safetensors"
    save_file({name: piece.values.detach().cpu().contiguous() for name, piece in pieces.items()}, path)
    return _written(path, {name: (piece.size, piece.offset) for name, piece in pieces.items()})


class RetentionPolicy(Protocol):
    """When checkpoints are written and which stay, as ``recipe.Checkpoints`` says it."""

    @property
    def every_s(self) -> float:
        """Seconds between two checkpoints."""

    @property
    def keep_last(self) -> int:
        """How many of the last ones stay."""

    def due(self, step: int) -> bool:
        """Whether one is written after ``step`` steps, whatever the clock says."""

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is never removed."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: the finished steps, and a row of metrics for each."""

    spec: RunSpec
    step: int
    metrics: Rows


def complete(hidden: Path, folder: Path, written: Iterable[Written], progress: Progress) -> None:
    """Make the files in ``hidden`` the checkpoint ``folder/step-N``."""
    progress.metrics.write(hidden / _METRICS)
    files = [*written, _written(hidden / _METRICS, {})]
    manifest = {
        "format": FORMAT,
        "run": progress.spec.id,
        "prefix": progress.spec.prefix_id(progress.step),
        "step": progress.step,
        "files": {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in files},
        "tensors": _index(files),
    }
    write_sealed(hidden / _MANIFEST, to_jsonable_python(manifest))
    final = folder / f"step-{progress.step}"
    if final.exists() or final.is_symlink():  # only what is no checkpoint of this run can stand there
        set_aside(final)
    hidden.rename(final)
    sync(folder)


def set_aside(path: Path) -> Path:
    """Rename ``path`` so that it is no longer taken for a checkpoint; returns its new name, ``NAME.damaged``."""
    for number in range(1, 1000):
        target = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not target.exists() and not target.is_symlink():
            path.rename(target)
            sync(path.parent)
            return target
    raise ArmillaryError(f"{path.parent}: holds 1000 damaged copies of {path.name}; move them away")


def _index(files: Iterable[Written]) -> dict[str, Any]:
    """The size of each tensor, and where its pieces begin by file."""
    tensors: dict[str, Any] = {}
    for file in files:
        for name, (size, offset) in file.pieces.items():
            tensors.setdefault(name, {"size": size, "pieces": {}})["pieces"][file.name] = offset
    return tensors


def join_pieces(written: Iterable[Written], folder: Path, path: Path) -> None:
    """Put the pieces that were written into ``folder`` together to a safetensors file of whole tensors.

    One tensor is in memory at a time. The file has the bytes that the library writes for the same tensors: those of
    wide types first, then by name.
    """
    index = _index(written)
    reader = PieceReader(folder, index)
    kinds = {name: reader.kind(name) for name in index}
    names = sorted(index, key=lambda name: (-_KINDS[kinds[name]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + math.prod(index[name]["size"]) * _KINDS[kinds[name]]
        header[name] = {"dtype": kinds[name], "shape": list(index[name]["size"]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    hidden = aside(path)
    try:
        with open(hidden, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(reader.whole(name).contiguous().view(-1).view(torch.uint8).numpy().data)
        sync(hidden)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync(path.parent)


def save_checkpoint(folder: Path, pieces: Mapping[str, Piece], progress: Progress, policy: RetentionPolicy) -> None:
    """Write ``folder/step-N`` by one process, and ``thin_out``.

    Raises:
        ArmillaryError: it could not be written; the checkpoints before it are as they were.
    """
    hidden = aside(folder / f"step-{progress.step}")
    try:
        with writing(folder / f"step-{progress.step}"):
            hidden.mkdir(parents=True)
            complete(hidden, folder, [write_pieces(hidden, 0, pieces)], progress)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    thin_out(folder, progress, policy)


def thin_out(folder: Path, progress: Progress, policy: RetentionPolicy) -> None:
    """Remove all checkpoints but that of the last step, the ``keep_last - 1`` before it, and those that stay."""
    step, keep_last = progress.step, policy.keep_last
    passing = [s for s in checkpoint_steps(folder) if s < step and not policy.stays(s)]
    before = passing[len(passing) - keep_last + 1 :] if keep_last > 1 else []
    remove_checkpoints(folder, progress.spec.id, lambda s: s >= step or s in before or policy.stays(s), step)


def remove_checkpoints(folder: Path, run: str, stays: Callable[[int], bool], written: float = math.inf) -> None:
    """Remove the checkpoints of ``run`` except the steps that stay, and what a killed process left half written.

    What is half written of a step after ``written`` is not touched: another rank may have begun the next checkpoint.
    What another machine writes is removed only when it is old: that machine may be alive and merely cut off, its lock
    on the run lost. A checkpoint of another run, of a newer format or without a readable manifest is left alone.
    """
    for step in checkpoint_steps(folder):
        path = folder / f"step-{step}"
        if not stays(step) and _removable(path, run):
            hidden = aside(path)  # a kill in the middle must not leave half a checkpoint under its name
            with contextlib.suppress(OSError):
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
    for path in folder.glob(".step-*"):
        name = _HIDDEN.fullmatch(path.name)
        if name is None or int(name[1]) > written:
            continue
        if name[2].startswith(f"{HOST}.") or _age_s(path) > _ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def _removable(path: Path, run: str) -> bool:
    try:
        return bool(read_manifest(path).get("run", run) == run)
    except (ArmillaryError, OSError):
        return False


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return 0.0


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending; other names and plain files are not counted.

    Raises:
        ArmillaryError: ``folder`` is a file, or a link that leads nowhere: checkpoints may lie behind it.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise ArmillaryError(
                f"{folder}: not a folder (a file, or a link that leads nowhere), and it should hold the checkpoints; "
                "mount the disk that the link leads to, or move it away"
            )
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(int(name[1]) for name, path in named if name is not None and path.is_dir())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint ``path``, of any format.

    Raises:
        FileNotFoundError, DamagedFileError, ForeignFileError: as ``read_sealed``.
    """
    file = path / _MANIFEST
    manifest = read_json(file, "checkpoint manifest", _REMEDY)
    if manifest.get("format") != 1:  # format 1 has the checksums of its files where later ones have the seal
        manifest = read_sealed(file, "checkpoint manifest", FORMAT, _REMEDY, sealed_since=2)
        if manifest["format"] > 2 and not all(isinstance(manifest.get(name), str) for name in ("run", "prefix")):
            raise ForeignFileError(
                f"{file}: checkpoint manifest of format {manifest['format']} without a run, which this version does "
                "not write; use the program that wrote it. The file is left as it is"
            )
    return manifest


def verify_checkpoint(path: Path, run: str | None = None, part: int = 0, parts: int = 1) -> None:
    """Compare the manifest of a checkpoint with its name and with ``run``, and every file with its size and checksum.

    The files can be divided among many readers: each takes the ``part``-th of ``parts``. Without ``run`` the
    checkpoint may be of any run.

    Raises:
        DamagedFileError: a file is missing, torn or changed; one line for each.
        ForeignFileError: the format is newer, or the checkpoint belongs to another run.
        ArmillaryError: a file cannot be read now, for a cause that may pass.
    """
    try:
        manifest = read_manifest(path)
        if run is not None and manifest.get("run", run) != run:
            raise ForeignFileError(
                f"{path}: is a checkpoint of run {manifest['run']}, not of {run}; move it back to its own folder. It "
                "is left as it is"
            )
        if manifest["step"] != int(path.name.removeprefix("step-")):
            raise DamagedFileError(f"{path}: {_MANIFEST} is that of step {manifest['step']}; {_REMEDY}")
        if manifest["format"] == 1:
            sums, sizes = {name: manifest["sha256"][name] for name in _OF_FORMAT_1}, {}
        else:
            sums = {name: file["sha256"] for name, file in manifest["files"].items()}
            sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
        mine = sorted(sums)[part::parts]
        found = [
            (name, _difference(path / name, sizes.get(name), sums[name] if name in mine else None)) for name in sums
        ]
        problems = [f"{path / name}: {what}; {_REMEDY}" for name, what in found if what is not None]
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path / _MANIFEST}: is missing; {_REMEDY}") from error
    except OSError as error:
        if error.errno in PASSING:
            raise ArmillaryError(f"{error.filename or path}: cannot be read now ({error.strerror})") from error
        raise DamagedFileError(f"{error.filename or path}: cannot be read ({error.strerror}); {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: {_MANIFEST} is damaged; {_REMEDY}") from error
    if problems:
        raise DamagedFileError("\n".join(problems))


def _difference(file: Path, size: int | None, digest: str | None) -> str | None:
    """What of a file is not as recorded; None where nothing is. A size or digest of None is not compared."""
    try:
        found = file.stat().st_size
        if size is not None and found != size:
            return f"has {counted(found, 'byte')} instead of {size}"
        if digest is not None and file_sha256(file) != digest:
            return "does not match its checksum"
    except FileNotFoundError:
        return "is missing"
    return None


class PieceReader:
    """Tensors in pieces, read by slices. ``index`` is that of a checkpoint, for files in ``folder``."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self._index = folder, index
        self._files: dict[str, Any] = {}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, "pt")
            except (OSError, SafetensorError) as error:
                raise DamagedFileError(f"{self.folder / file}: cannot be read ({error}); {_REMEDY}") from error
        return self._files[file]

    @classmethod
    def of(cls, path: Path) -> PieceReader:
        """The reader of one safetensors file of whole tensors.

        Raises:
            DamagedFileError: it cannot be read as one.
        """
        reader = cls(path.parent, {})
        reader._index = reader._whole_files([path.name])
        return reader

    def _whole_files(self, files: Iterable[str]) -> dict[str, Any]:
        """The index of files that hold whole tensors."""
        index = {}
        for file in files:
            opened = self._open(file)
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                size = opened.get_slice(name).get_shape()
                index[name] = {"size": size, "pieces": {file: [0] * len(size)}}
        return index

    def kind(self, name: str) -> str:
        """The type of the numbers of the tensor ``name``, as safetensors writes it."""
        kind: str = self._open(next(iter(self._index[name]["pieces"]))).get_slice(name).get_dtype()
        return kind

    def whole(self, name: str) -> Tensor:
        """All of the tensor ``name``, on the CPU."""
        size = tuple(self._index[name]["size"])
        return self.read(name, size, (0,) * len(size))

    def difference(self, sizes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Which tensor is missing, unexpected or of another size than in a model of ``sizes``; None where none is."""
        for name, size in sizes.items():
            if name not in self._index:
                return f"it lacks the tensor '{name}'"
            if tuple(self._index[name]["size"]) != size:
                return f"'{name}' is {list(self._index[name]['size'])} there and {list(size)} in this run"
        for name, tensor in self._index.items():
            parameter, _, key = name.partition("/")
            if parameter not in sizes:
                return f"it has a tensor '{name}', which this run's model lacks"
            # a moment has its parameter's size, and a count none
            if key and math.prod(tensor["size"]) != 1 and tuple(tensor["size"]) != sizes[parameter]:
                return f"'{name}' is {list(tensor['size'])} there and {list(sizes[parameter])} in this run"
        return None

    def states(self, name: str) -> dict[str, tuple[int, ...]]:
        """Keys and whole sizes of the optimizer state of the parameter ``name``."""
        begin = f"{name}/"
        return {key[len(begin) :]: tuple(t["size"]) for key, t in self._index.items() if key.startswith(begin)}

    def read(self, name: str, size: tuple[int, ...], offset: tuple[int, ...]) -> Tensor:
        """The part of the tensor ``name`` of ``size`` that begins at ``offset``, on the CPU.

        Raises:
            ArmillaryError: there is no such tensor, or not all of that part.
        """
        result, missing = torch.empty(size), math.prod(size)
        for file, start in self._index.get(name, {"pieces": {}})["pieces"].items():
            piece = self._open(file).get_slice(name)
            sides = zip(offset, size, start, piece.get_shape(), strict=True)
            common = [(max(o, s), min(o + n, s + m)) for o, n, s, m in sides]
            if any(begin >= end for begin, end in common):
                continue
            part: Tensor = piece[tuple(slice(b - s, e - s) for (b, e), s in zip(common, start, strict=True))]
            if part.shape == size:
                return part.clone()  # what is read is the mapped file
            result = result.to(part.dtype)
            result[tuple(slice(b - o, e - o) for (b, e), o in zip(common, offset, strict=True))] = part
            missing -= part.numel()
        if missing:
            raise ArmillaryError(f"{self.folder}: there is no '{name}', or not all of it")
        return result


class CheckpointReader(PieceReader):
    """A checkpoint of any format: weights under the names of the model, optimizer state as ``NAME/KEY``."""

    def __init__(self, path: Path) -> None:
        self.manifest = read_manifest(path)
        self._rows: pa.Table | None = None
        super().__init__(path, self.manifest["tensors"] if self.manifest["format"] != 1 else {})
        if self.manifest["format"] == 1:
            self._index = self._whole_files(_OF_FORMAT_1[:2])

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The weights in the checkpoint with their whole sizes, without the optimizer's state."""
        return {name: tuple(tensor["size"]) for name, tensor in self._index.items() if "/" not in name}

    def compare(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the whole sizes of all tensors with those of a model, before any slice is read.

        Raises:
            ForeignFileError: a tensor is missing, unexpected, or of another size.
        """
        what = self.difference(sizes)
        if what is not None:
            raise ForeignFileError(
                f"{self.folder}: is a checkpoint of another model: {what}; move it back to its own folder. It is left "
                "as it is"
            )

    def metrics(self) -> pa.Table:
        """The metrics up to this step, a row for each.

        Raises:
            DamagedFileError: not a table of them.
        """
        if self._rows is None:
            file = self.folder / _METRICS
            try:
                table = pq.read_table(file)
                steps = table["step"] if "step" in table.column_names else []
            except (OSError, pa.ArrowException) as error:
                raise DamagedFileError(f"{file}: cannot be read ({error}); {_REMEDY}") from error
            if len(steps) != self.manifest["step"] or not np.array_equal(steps, np.arange(1, len(steps) + 1)):
                raise DamagedFileError(
                    f"{file}: lacks a row for each of {counted(self.manifest['step'], 'step')}; {_REMEDY}"
                )
            self._rows = table
        return self._rows


def _written(path: Path, pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Written:
    sync(path)
    return Written(path.name, path.stat().st_size, file_sha256(path), pieces)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
