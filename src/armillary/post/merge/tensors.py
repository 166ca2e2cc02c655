"""Reads and writes safetensors files one tensor at a time, without mapping the file.

``safetensors`` itself maps a whole file and writes from a dictionary of all tensors, so a merge would need memory for
the whole model. The format is 8 bytes with the length of a JSON header, the header, and the values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.files import sync
from armillary.recipe import DamagedFileError

KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("F64", "F32", "F16", "BF16")
# The library also refuses longer headers.
_LONGEST_HEADER = 100_000_000
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: safetensors' name of its type, shape, and the offset of its bytes in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * KINDS[self.kind].itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        DamagedFileError: not a safetensors file, torn, or with a dtype that is not in ``KINDS``.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("its header is truncated")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {}
        for name, stored in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = stored["data_offsets"]
            if stored["dtype"] not in KINDS:
                raise ValueError(f"{name} is {stored['dtype']}; supported are {', '.join(KINDS)}")
            entries[name] = Entry(stored["dtype"], tuple(int(n) for n in stored["shape"]), 8 + length + begin)
            if begin < 0 or end - begin != entries[name].bytes or 8 + length + end > size:
                raise ValueError(f"{name} is not within the file, which is truncated or was changed")
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); fetch or write the model again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(
            f"{path}: cannot be read as weights ({error}); fetch or write the model again"
        ) from error
    return entries


def read_tensor(path: Path, entry: Entry, most: int | None = None) -> Tensor:
    """The tensor, or its first ``most`` values as one row.

    Raises:
        DamagedFileError: the file is shorter than its header says, or cannot be read.
    """
    kind = KINDS[entry.kind]
    size = entry.bytes if most is None else min(entry.bytes, most * kind.itemsize)
    data = bytearray(size)
    view = memoryview(data)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(entry.begin)
            done = 0
            while done < size:
                got = file.readinto(view[done : done + _BLOCK])
                if not got:
                    raise DamagedFileError(f"{path}: ends within a tensor; fetch or write the model again")
                done += got
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); fetch or write the model again") from error
    tensor = torch.frombuffer(data, dtype=kind) if size else torch.empty(0, dtype=kind)
    return tensor if most is not None else tensor.reshape(entry.shape)


def write_tensors(path: Path, entries: dict[str, Entry], read: Callable[[str], Tensor]) -> str:
    """Write a safetensors file with ``entries``, reading one tensor at a time, and return its SHA-256."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        header[name] = {"dtype": entry.kind, "shape": list(entry.shape), "data_offsets": [end, end + entry.bytes]}
        end += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in _parts(text, entries, read):
            digest.update(part)
            file.write(part)
    sync(path)
    return digest.hexdigest()


def _parts(text: bytes, entries: dict[str, Entry], read: Callable[[str], Tensor]) -> Iterator[bytes | memoryview]:
    yield len(text).to_bytes(8, "little") + text
    for name, entry in entries.items():
        tensor = read(name)
        assert tuple(tensor.shape) == entry.shape and tensor.dtype == KINDS[entry.kind]
        if tensor.numel():
            yield tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks.

    Raises:
        DamagedFileError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); fetch or write the model again") from error
    return digest.hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, to detect changes while it is read."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
