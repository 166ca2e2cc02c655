"""Locks between processes that name their holder and never outlive it.

A lock is a file with an advisory system lock (``flock``), which ends with the holding process, even after ``kill -9``.
The file's content (process, host, command, start time) is used only in the message to the next process. Empty, torn or
foreign content does not affect the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from armillary.recipe.errors import ArmillaryError, without_passwords

# Errors of file systems without a lock service: NFS without lockd, Lustre without -o flock, FUSE, some 9p mounts.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NAME_S = 0.5  # between taking a lock and naming its holder

_held: dict[Path, tuple[int, int]] = {}  # descriptor and thread of each lock of this process


class BusyError(ArmillaryError):
    """Another process, or another thread of this one, holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock ``path`` (a file that stays; its folder is created if missing), or raise without waiting.

    The lock is reentrant for its thread. ``what`` completes the sentence "process 12 on host ...", as in
    ``with exclusive(folder / ".lock", "works in this workspace")``.

    Raises:
        BusyError: another process or thread holds it, with its process id, host, command and start.
        ArmillaryError: the file system does not support locks, or the file cannot be created.
    """
    key = path.parent.resolve() / path.name
    if key in _held:
        if _held[key][1] != threading.get_ident():
            raise BusyError(f"{path.parent}: another thread of this process {what}; wait for it")
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArmillaryError(
            f"{error.filename or path}: {error.strerror}; Armillary writes to this folder, so this user must be able "
            "to create files in it"
        ) from error
    try:
        lock(descriptor, path, wait=False)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise BusyError(f"{path.parent}: {holder} {what}; wait for it to end, or stop it") from None
    except BaseException:
        os.close(descriptor)
        raise
    _held[key] = descriptor, threading.get_ident()
    try:
        _write(descriptor, _this_process())
        yield
    finally:
        _write(descriptor, None)
        _held.pop(key, None)
        os.close(descriptor)


def lock(file: int, path: Path, wait: bool) -> None:
    """Lock the open ``file`` (a descriptor of ``path``) until it is closed.

    Raises:
        BlockingIOError: it is locked, and ``wait`` is false.
        ArmillaryError: the file system does not support locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        raise ArmillaryError(
            f"{path}: this file system does not support locks ({error.strerror}), without which two processes could "
            "overwrite each other's work; mount it with locks (NFSv4; Lustre with -o flock), or use a folder on a "
            "local disk"
        ) from error


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        # Other users can read this file, so it must not contain a database password.
        "command": without_passwords(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _write(descriptor: int, holder: dict[str, Any] | None) -> None:
    # The lock works without this content, and a full disk must not stop a command that may free space.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        if holder is not None:
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    """The description of a lock's holder, from the content of its file."""
    end = time.monotonic() + _NAME_S
    while True:
        try:
            holder = json.loads(os.pread(descriptor, 65536, 0))
            pid, host, command, since = (
                int(holder["pid"]),
                str(holder["host"]),
                str(holder["command"]),
                str(holder["since"]),
            )
            # The previous holder may have been killed, and the current one may not have written its name yet.
            if host != socket.gethostname() or Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists():
                return f"process {pid} on {host} ({command}, since {since})"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        if time.monotonic() > end:
            return "another process"
        time.sleep(0.02)


def _leave_to_parent() -> None:
    """Close a forked child's copies of the descriptors, so that it does not keep its parent's locks alive.

    Closing a copy does not release the lock.
    """
    for descriptor, _ in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
