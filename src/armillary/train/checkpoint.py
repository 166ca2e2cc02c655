"""Checkpoints of one run: all that training needs to go on, in pieces that any layout can read.

A checkpoint is a folder ``step-N``::

    rank-00000.safetensors   the pieces of weights and optimizer state that this rank is the first to hold
    metrics.parquet          the metrics so far
    checkpoint.json          format, step, size and SHA-256 of every file, which pieces make up each tensor, and a
                             hash of all that

The manifest is written last and the folder is written aside and then renamed, so a checkpoint is there whole or not at
all; one whose files do not match their checksums (a torn disk, a flipped bit) is passed over for the one before it.
There is no saved state of the data loader and none of a random generator: the batches are a function of the step
(contract 2), and nothing in a step is random.

A rank reads of each tensor the slices it needs, whoever wrote them, so a run goes on under another layout, or on one
device. Format 1, whole tensors of one process, is still read.

Trade-off: this is not ``torch.distributed.checkpoint``. Its index is a pickle, which is code to whoever reads it; its
safetensors writer leaves no index at all, so that a lost file looks like a smaller tensor, and neither has checksums.
The pieces are those that DTensor names, which is what it would have written.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic_core import to_jsonable_python
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from armillary.files import HOST, aside, sync, write_json
from armillary.recipe import ArmillaryError, canonical_hash

FORMAT = 2

_ABANDONED_S = 3600.0
_METRICS = "metrics.parquet"
_MANIFEST = "checkpoint.json"
_OF_FORMAT_1 = ("model.safetensors", "optimizer.safetensors", _METRICS)


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


def complete(
    hidden: Path, folder: Path, step: int, written: Iterable[Written], metrics: list[dict[str, float]]
) -> None:
    """Make the files in ``hidden`` the checkpoint ``folder/step-N``."""
    pq.write_table(metrics_table(metrics), hidden / _METRICS)
    files = [*written, _written(hidden / _METRICS, {})]
    manifest = {
        "format": FORMAT,
        "step": step,
        "files": {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in files},
        "tensors": _index(files),
    }
    write_json(hidden / _MANIFEST, {**manifest, "sha256": canonical_hash(to_jsonable_python(manifest))})
    final = folder / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)  # only a damaged one of the same step can stand there
    hidden.rename(final)
    sync(folder)


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


def save_checkpoint(
    folder: Path,
    step: int,
    pieces: Mapping[str, Piece],
    metrics: list[dict[str, float]],
    keep_last: int = 2,
    stays: Callable[[int], bool] = lambda step: False,
) -> None:
    """Write ``folder/step-N`` by one process, and ``thin_out``."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = aside(folder / f"step-{step}")
    hidden.mkdir()
    complete(hidden, folder, step, [write_pieces(hidden, 0, pieces)], metrics)
    thin_out(folder, step, keep_last, stays)


def thin_out(folder: Path, step: int, keep_last: int, stays: Callable[[int], bool]) -> None:
    """Remove all checkpoints but that of ``step``, the ``keep_last - 1`` before it, and those that ``stays`` says.

    Later ones go: they are damaged, or the run would have gone on from them.
    """
    passing = [s for s in checkpoint_steps(folder) if s < step and not stays(s)]
    before = passing[len(passing) - keep_last + 1 :] if keep_last > 1 else []
    remove_checkpoints(folder, lambda s: s == step or s in before or stays(s), step)


def remove_checkpoints(folder: Path, stays: Callable[[int], bool], written: float = math.inf) -> None:
    """Remove all checkpoints but those of steps that ``stays`` says, and what a killed process had half written.

    What is half written of a step after ``written`` is not touched: another rank may have begun the next checkpoint.

    What another machine writes goes only when it is old: that machine may be alive and merely cut off, its lock on the
    run lost.
    """
    half_written = [
        path
        for path in folder.glob(".step-*")
        if int(path.name.split(".")[1].removeprefix("step-")) <= written
        and (path.name.split(".", 2)[-1].startswith(f"{HOST}.") or _age_s(path) > _ABANDONED_S)
    ]
    gone = [folder / f"step-{step}" for step in checkpoint_steps(folder) if not stays(step)]
    for path in [*gone, *half_written]:
        shutil.rmtree(path, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return 0.0


def metrics_table(metrics: list[dict[str, float]]) -> pa.Table:
    """Rows as a table with a column for every key that any of them has, in order of first appearance."""
    columns = dict.fromkeys(key for row in metrics for key in row)
    return pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in metrics])


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def verify_checkpoint(path: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, in words, or None where every file has its size and checksum.

    The files can be divided among many readers: each takes the ``part``-th of ``parts``.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in (1, FORMAT):
            return f"format {manifest['format']} is not one that this version reads (1, {FORMAT})"
        if manifest["step"] != int(path.name.removeprefix("step-")):
            return f"{_MANIFEST} is that of step {manifest['step']}"
        if manifest["format"] == 1:
            sums = {name: manifest["sha256"][name] for name in _OF_FORMAT_1}
        else:
            if manifest.pop("sha256") != canonical_hash(manifest):
                return f"{_MANIFEST} does not match its checksum"
            sums = {name: file["sha256"] for name, file in manifest["files"].items()}
            for name, file in manifest["files"].items():
                size = (path / name).stat().st_size
                if size != file["bytes"]:
                    return f"{name} has {size} bytes instead of {file['bytes']}"
        for name in sorted(sums)[part::parts]:
            if _sha256(path / name) != sums[name]:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    return None


class PieceReader:
    """Tensors in pieces, read by slices. ``index`` is that of a checkpoint, for files in ``folder``."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self._index = folder, index
        self._files: dict[str, Any] = {}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = safe_open(self.folder / file, "pt")
        return self._files[file]

    def kind(self, name: str) -> str:
        """The type of the numbers of the tensor ``name``, as safetensors writes it."""
        kind: str = self._open(next(iter(self._index[name]["pieces"]))).get_slice(name).get_dtype()
        return kind

    def whole(self, name: str) -> Tensor:
        """All of the tensor ``name``, on the CPU."""
        size = tuple(self._index[name]["size"])
        return self.read(name, size, (0,) * len(size))

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
    """A verified checkpoint of either format: weights under the names of the model, optimizer state as ``NAME/KEY``."""

    def __init__(self, path: Path) -> None:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        super().__init__(path, manifest["tensors"] if manifest["format"] != 1 else {})
        if manifest["format"] == 1:
            index = {}
            for file in _OF_FORMAT_1[:2]:
                opened = self._open(file)
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    size = opened.get_slice(name).get_shape()
                    index[name] = {"size": size, "pieces": {file: [0] * len(size)}}
            self._index = index

    def metrics(self) -> list[dict[str, float]]:
        """The metrics up to this step."""
        rows = pq.read_table(self.folder / _METRICS).to_pylist()
        return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _written(path: Path, pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Written:
    sync(path)
    return Written(path.name, path.stat().st_size, _sha256(path), pieces)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
