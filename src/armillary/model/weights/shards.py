"""Folders of safetensors files: read one tensor at a time, and written shard by shard without a second copy.

Reading opens every header and maps one file at a time. Writing computes all headers first and then streams the tensors,
so a conversion of any model holds only one tensor and the mapped pages of one file.

The layout of a safetensors file is 8 bytes with the length of the header, the header (JSON), and the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armillary.recipe import ArmillaryError, reason_of

WEIGHTS = "model.safetensors"
# The largest shard that is written, as in Hugging Face transformers.
SHARD_BYTES = 5 * 10**9

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PLAIN = {
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, its size, and its type as safetensors names it."""

    file: str
    size: tuple[int, ...]
    dtype: str


class Shards:
    """The tensors of a folder with one safetensors file, or several and their index.

    Raises:
        ArmillaryError: a file is missing or torn, or the index does not match the files.
    """

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._file: tuple[str, Any] | None = None
        index = folder / f"{name}.index.json"
        listed: dict[str, str] = {}
        try:
            if index.exists():
                listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                if not isinstance(listed, dict) or not listed:
                    raise ValueError("weight_map does not map tensors to files")
                files = sorted(set(listed.values()))
            else:
                files = [name]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unreadable(folder, f"{index.name}: {error!r}") from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise _unreadable(folder, f"{index.name} names {file!r}, which is not a file of this folder")
            try:
                with safe_open(folder / file, framework="pt") as opened:
                    for key in opened.keys():  # noqa: SIM118 (no mapping)
                        part = opened.get_slice(key)
                        if key in self.entries:
                            raise _unreadable(folder, f"{key} is in {self.entries[key].file} and in {file}")
                        self.entries[key] = Entry(file, tuple(part.get_shape()), part.get_dtype())
            except (OSError, SafetensorError, ValueError) as error:
                named = f", which {index.name} names" if listed else ""
                raise _unreadable(folder, f"{file}{named}: {reason_of(error)}") from error
        for key, file in listed.items():
            if key not in self.entries or self.entries[key].file != file:
                raise _unreadable(folder, f"{index.name} has {key} in {file}, but that file lacks it")

    def tensor(self, name: str, at: int | None = None) -> Tensor:
        """The tensor ``name`` as it is stored; ``at``: only this index of the first dimension.

        Raises:
            ArmillaryError: its type is not a floating-point type of weights, or the file can no longer be read.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:  # a quantised number means nothing without its scale
            raise ArmillaryError(
                f"{self.folder}: {name} is {_PLAIN.get(entry.dtype, entry.dtype)}; supported are weights in float32, "
                "float16 or bfloat16"
            )
        return self.raw(name, at)

    def raw(self, name: str, at: int | None = None) -> Tensor:
        """As ``tensor``, of any type that torch has."""
        entry = self.entries[name]
        try:
            if self._file is None or self._file[0] != entry.file:
                self._file = None  # unmaps the file before the next one is mapped
                self._file = entry.file, safe_open(self.folder / entry.file, framework="pt")
            found: Tensor = self._file[1].get_tensor(name) if at is None else self._file[1].get_slice(name)[at]
            kind = self._file[1].get_slice(name).get_dtype()
        except (OSError, SafetensorError, ValueError) as error:
            raise _unreadable(self.folder, f"{entry.file}: {error}") from error
        if tuple(found.shape) != (entry.size if at is None else entry.size[1:]) or kind != entry.dtype:
            raise _unreadable(self.folder, f"{entry.file}: {name} was changed while it was read")
        return found

    def dtype(self) -> torch.dtype:
        """The floating-point type that most numbers have."""
        counts: dict[str, int] = {}
        for entry in self.entries.values():
            counts[entry.dtype] = counts.get(entry.dtype, 0) + math.prod(entry.size)
        found = max((name for name in counts if name in DTYPES), key=counts.__getitem__, default="F32")
        return DTYPES[found]


def _unreadable(folder: Path, reason: str) -> ArmillaryError:
    return ArmillaryError(f"{folder}: its weights cannot be read ({reason}); fetch the folder again")


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its name, size and type, and the function that computes its values when they are due."""

    name: str
    size: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return math.prod(self.size) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardFiles:
    """The name of a single file, the largest size of one of several, and the framework that their metadata names."""

    name: str = WEIGHTS
    shard_bytes: int = SHARD_BYTES
    framework: str = "pt"


def write_shards(
    folder: Path, tensors: Sequence[Planned], written: Callable[[int], None], files: ShardFiles = ShardFiles()
) -> None:
    """Write ``tensors`` in their order: one file, or several with an index.

    ``written`` is called with the number of bytes after each tensor.
    """
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > files.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    stem, count = files.name.removesuffix(".safetensors"), len(shards)
    names = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] if count > 1 else [files.name]
    for name, shard in zip(names, shards, strict=True):
        _write_safetensors(folder / name, shard, written, files.framework)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(tensor.bytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        (folder / f"{files.name}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, tensors: Sequence[Planned], written: Callable[[int], None], framework: str) -> None:
    """Write one file and flush it; each tensor is computed, written and freed in turn."""
    header: dict[str, Any] = {"__metadata__": {"format": framework}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES.get(tensor.dtype) or _whole(tensor.dtype),
            "shape": list(tensor.size),
            "data_offsets": [end, end := end + tensor.bytes],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            write_tensor(file, tensor)
            written(tensor.bytes)
        file.flush()
        os.fsync(file.fileno())


def _whole(dtype: torch.dtype) -> str:
    return next(name for name, plain in _PLAIN.items() if plain == str(dtype).removeprefix("torch."))


def write_tensor(file: BinaryIO, tensor: Planned) -> None:
    """Compute ``tensor`` and write its bytes."""
    values = tensor.make().detach().cpu().contiguous()
    assert tuple(values.shape) == tensor.size and values.dtype == tensor.dtype, tensor.name
    file.write(values.reshape(-1).view(torch.uint8).numpy().data)
