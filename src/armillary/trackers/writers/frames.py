"""Files of records with checksums: TFRecord, in which TensorBoard keeps events, and the log of Weights & Biases.

A reader yields whole records and where each ends. What follows the last one was torn by a kill or damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

# LevelDB's log format as Weights & Biases writes it.
_WANDB_HEADER = b":W&B"
_BLOCK = 32768
_RECORD = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

_TF_HEADER = struct.Struct("<QI")
_TF_LARGEST = 1 << 30


class TornError(ValueError):
    """The file ends within a record, or a record does not match its checksum; ``offset`` is where that one begins."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at byte {offset}")
        self.offset = offset


def tf_records(data: bytes | memoryview, begin: int = 0, check: bool = True) -> Iterator[tuple[bytes, int]]:
    """Records of a TFRecord file and the offset after each; ``check`` compares checksums of contents too.

    Raises:
        TornError: what follows is not a whole record.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    at, size = begin, len(data)
    while at < size:
        if at + _TF_HEADER.size > size:
            raise TornError("a record is cut off", at)
        length, checksum = _TF_HEADER.unpack_from(data, at)
        if length > _TF_LARGEST or masked_crc32c(bytes(data[at : at + 8])) != checksum:
            raise TornError("the length of a record does not match its checksum", at)
        end = at + _TF_HEADER.size + length + 4
        if end > size:
            raise TornError("a record is cut off", at)
        content = bytes(data[at + _TF_HEADER.size : end - 4])
        if check and masked_crc32c(content) != struct.unpack_from("<I", data, end - 4)[0]:
            raise TornError("a record does not match its checksum", at)
        yield content, end
        at = end


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of a ``.wandb`` file.

    Raises:
        TornError: what follows is not a whole record.
    """
    if data[:4] != _WANDB_HEADER or len(data) < 7:
        raise TornError("this is not a file of Weights & Biases", 0)
    at, size, begin = 7, len(data), 7
    parts: list[bytes] = []
    while at < size:
        left = _BLOCK - at % _BLOCK
        if left < _RECORD.size:  # the rest of a block is filled with zeros
            at += left
            continue
        if not parts:
            begin = at
        if at + _RECORD.size > size:
            raise TornError("a record is cut off", begin)
        checksum, length, kind = _RECORD.unpack_from(data, at)
        content = data[at + _RECORD.size : at + _RECORD.size + length]
        if len(content) < length:
            raise TornError("a record is cut off", begin)
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum:
            raise TornError("a record does not match its checksum", begin)
        at += _RECORD.size + length
        parts = [content] if kind in (_FULL, _FIRST) else [*parts, content]
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
    if parts:
        raise TornError("a record is cut off", begin)
