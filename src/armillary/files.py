"""Files that after a kill or a crash are there whole or not at all: written aside, flushed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

# Errors of a file whose cause may pass; its content may be good, so the file is never treated as damaged.
PASSING = frozenset(
    (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
)

# Part of the name of everything that this machine writes aside.
HOST = socket.gethostname()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(path: Path) -> Path:
    """A hidden name beside ``path`` that no other writer uses, in this process, on this machine or on another."""
    return path.with_name(f".{path.name}.{HOST}.{uuid.uuid4().hex[:12]}")


def write_file(path: Path, data: bytes) -> None:
    """Write ``data``; an older file of that name stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = aside(path)
    try:
        with open(hidden, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; infinities and NaN, which JSON does not have, are a ValueError."""
    write_file(path, (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
