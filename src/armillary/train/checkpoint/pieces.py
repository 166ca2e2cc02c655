"""The pieces of a checkpoint: written by each rank, assembled, and read by slices under any layout."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from armillary.files import aside, file_sha256, sync
from armillary.recipe import ArmillaryError, DamagedFileError

REMEDY = "restore it from a copy"

# Bytes per number, by the safetensors name of the type.
_KINDS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Piece:
    """``values`` is the part of a tensor of ``size`` that begins at ``offset``."""

    values: Tensor
    size: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint: its size and checksum, and for each piece the whole tensor's size and the offset.

    ``checksum`` has the name of a function in ``CHECKSUMS`` and its value.
    """

    name: str
    bytes: int
    checksum: dict[str, str]
    pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    """Tensors that are not divided."""
    return {name: Piece(t, tuple(t.shape), (0,) * t.ndim) for name, t in tensors.items()}


def write_pieces(folder: Path, rank: int, pieces: Mapping[str, Piece], checksum: str = "sha256") -> Written:
    """Write the pieces of ``rank`` into ``folder`` and flush them; ``checksum`` is a name in ``CHECKSUMS``."""
    path = folder / f"rank-{rank:05}.safetensors"
    save_file({name: piece.values.detach().cpu().contiguous() for name, piece in pieces.items()}, path)
    return written_file(path, {name: (piece.size, piece.offset) for name, piece in pieces.items()}, checksum)


def join_pieces(written: Iterable[Written], folder: Path, path: Path) -> None:
    """Assemble the pieces in ``folder`` into a safetensors file of whole tensors.

    One tensor is in memory at a time. The file is byte-identical to the library's own: wide types first, then by name.
    """
    index = tensor_index(written)
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


def tensor_index(files: Iterable[Written]) -> dict[str, Any]:
    """The size of each tensor, and the offsets of its pieces by file."""
    tensors: dict[str, Any] = {}
    for file in files:
        for name, (size, offset) in file.pieces.items():
            tensors.setdefault(name, {"size": size, "pieces": {}})["pieces"][file.name] = offset
    return tensors


def written_file(
    path: Path, pieces: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], checksum: str = "sha256"
) -> Written:
    """Flush a file of a checkpoint and return its record; ``pieces`` are the pieces in it."""
    sync(path)
    return Written(path.name, path.stat().st_size, {checksum: CHECKSUMS[checksum](path)}, pieces)


def _sum64(path: Path) -> str:
    """The sum of a file's 64-bit words: any changed bit changes it, and it takes an eighth of the time of SHA-256.

    It suffices in memory, where no file is torn and nobody else can write.
    """
    size = path.stat().st_size
    words = np.memmap(path, np.uint64, "r", shape=(size // 8,)) if size >= 8 else np.zeros(1, np.uint64)
    with open(path, "rb") as file:
        file.seek(size // 8 * 8)
        rest = int.from_bytes(file.read(), "little")
    return f"{(int(np.add.reduce(words)) + rest) % 2**64:016x}"


CHECKSUMS: dict[str, Callable[[Path], str]] = {"sha256": file_sha256, "sum64": _sum64}


class PieceReader:
    """Reads tensors in pieces, slice by slice. ``index`` is a checkpoint's index of the files in ``folder``."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self._index = folder, index
        self._files: dict[str, Any] = {}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, "pt")
            except (OSError, SafetensorError) as error:
                raise DamagedFileError(f"{self.folder / file}: cannot be read ({error}); {REMEDY}") from error
        return self._files[file]

    @classmethod
    def of(cls, path: Path) -> PieceReader:
        """The reader of one safetensors file of whole tensors.

        Raises:
            DamagedFileError: it is not a readable safetensors file.
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
        """The safetensors name of the type of tensor ``name``."""
        kind: str = self._open(next(iter(self._index[name]["pieces"]))).get_slice(name).get_dtype()
        return kind

    def whole(self, name: str) -> Tensor:
        """The whole tensor ``name``, on the CPU."""
        size = tuple(self._index[name]["size"])
        return self.read(name, size, (0,) * len(size))

    def difference(self, sizes: Mapping[str, tuple[int, ...]]) -> str | None:
        """The first tensor that is missing, unexpected or of another size than in ``sizes``, as text; else None."""
        for name, size in sizes.items():
            if name not in self._index:
                return f"it lacks the tensor '{name}'"
            if tuple(self._index[name]["size"]) != size:
                return f"'{name}' is {list(self._index[name]['size'])} there and {list(size)} in this run"
        for name, tensor in self._index.items():
            parameter, _, key = name.partition("/")
            if parameter not in sizes:
                return f"it has a tensor '{name}', which this run's model lacks"
            # a moment has its parameter's size, a count has no dimensions
            if key and math.prod(tensor["size"]) != 1 and tuple(tensor["size"]) != sizes[parameter]:
                return f"'{name}' is {list(tensor['size'])} there and {list(sizes[parameter])} in this run"
        return None

    def states(self, name: str) -> dict[str, tuple[int, ...]]:
        """Keys and full (unsharded) shapes of the optimizer state of the parameter ``name``."""
        begin = f"{name}/"
        return {key[len(begin) :]: tuple(t["size"]) for key, t in self._index.items() if key.startswith(begin)}

    def files(self, name: str, size: tuple[int, ...], offset: tuple[int, ...]) -> set[str]:
        """The files that hold parts of that slice; opens none, since the pieces of a tensor form a grid."""
        tensor = self._index.get(name, {"size": (), "pieces": {}})
        edges = [sorted({start[d] for start in tensor["pieces"].values()} | {n}) for d, n in enumerate(tensor["size"])]
        found = set()
        for file, start in tensor["pieces"].items():
            ends = [edge[min(bisect_right(edge, s), len(edge) - 1)] for edge, s in zip(edges, start, strict=True)]
            if all(max(o, s) < min(o + n, e) for o, n, s, e in zip(offset, size, start, ends, strict=True)):
                found.add(file)
        return found

    def read(self, name: str, size: tuple[int, ...], offset: tuple[int, ...]) -> Tensor:
        """The part of the tensor ``name`` of ``size`` that begins at ``offset``, on the CPU.

        Raises:
            ArmillaryError: the tensor, or a part of that slice, is missing.
        """
        result, missing = torch.empty(size), math.prod(size)
        needed = self.files(name, size, offset)
        for file, start in self._index.get(name, {"pieces": {}})["pieces"].items():
            if file not in needed and not (self.folder / file).exists():
                continue  # in the memory of another machine
            piece = self._open(file).get_slice(name)
            sides = zip(offset, size, start, piece.get_shape(), strict=True)
            common = [(max(o, s), min(o + n, s + m)) for o, n, s, m in sides]
            if any(begin >= end for begin, end in common):
                continue
            part: Tensor = piece[tuple(slice(b - s, e - s) for (b, e), s in zip(common, start, strict=True))]
            if part.shape == size:
                return part.clone()  # the values are a view of the mapped file
            result = result.to(part.dtype)
            result[tuple(slice(b - o, e - o) for (b, e), o in zip(common, offset, strict=True))] = part
            missing -= part.numel()
        if missing:
            raise ArmillaryError(f"{self.folder}: '{name}' is missing or incomplete")
        return result
