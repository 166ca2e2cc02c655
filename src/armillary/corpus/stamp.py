"""Compares the files of a corpus with its manifest, once per copy.

Opening a corpus compares each file with the SHA-256 in the manifest and then writes a *stamp*: size, modification and
change time, and inode of every compared file. As long as these do not change, later calls skip the hashing. The stamp
is in ``index/`` beside the corpus if that folder exists, else in a hidden file beside it.

Trade-off: a bit flip on the disk below the file system changes no time, so only ``verify_corpus`` finds it. If the
stamp cannot be written (a read-only disk), every call hashes the files.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from armillary.corpus.manifest import REMEDY, Manifest, ShardFile
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    read_sealed,
    write_sealed,
)

STAMP_FORMAT = 1
# Two writes within one tick of the file system's clock leave the same times, so files this young are left to age.
CLOCK_TICK_S = 0.02


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files of a corpus with its manifest, unless a stamp says that they have not changed since.

    Raises:
        DamagedFileError: a file is missing, unreadable or changed.
    """
    stamp = _stamp(folder, manifest)
    if _read_stamp(folder) == stamp:
        return
    if problems := compare_files(folder, manifest.files):
        more = f" ({len(problems) - 1} more files of this corpus are damaged)" if len(problems) > 1 else ""
        raise DamagedFileError(f"{problems[0]}{more}")
    _write_stamp(folder, stamp)


def compare_files(folder: Path, files: list[ShardFile]) -> list[FileProblem]:
    """The files of a corpus that are not what its manifest says, by size and SHA-256."""
    # A file that is still young could be written again without a new time, and the stamp would hide it.
    newest = max((_changed_s(folder / file.path) for file in files), default=0.0)
    if 0 <= time.time() - newest < CLOCK_TICK_S:
        time.sleep(CLOCK_TICK_S)
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        return [problem for problem in threads.map(lambda file: _content_problem(folder, file), files) if problem]


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:
        return 0.0


def _content_problem(folder: Path, file: ShardFile) -> FileProblem | None:
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return FileProblem(path, f"has {size} bytes, but {file.bytes} in the manifest", REMEDY)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        return FileProblem(path, f"missing ({error.strerror})", REMEDY)
    except OSError as error:
        return FileProblem(path, f"cannot be read ({error.strerror})", "make it readable, or restore it from a copy")
    if found != file.sha256:
        return FileProblem(path, "does not match its checksum in the manifest", REMEDY)
    return None


def _stamp_file(folder: Path) -> Path:
    folder = folder.absolute()
    index = folder.parent / "index"
    name = f"{folder.name}.verified.json"
    return index / name if index.is_dir() else folder.with_name(f".{name}")


def _stamp(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The current stamp; a missing file has no times, so the stamp equals none that was written."""
    files: dict[str, Any] = {}
    for file in manifest.files:
        try:
            stat = (folder / file.path).stat()
            files[file.path] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, file.bytes, file.sha256]
        except OSError:
            files[file.path] = None
    return {"format": STAMP_FORMAT, "files": files}


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        return read_sealed(_stamp_file(folder), "stamp", STAMP_FORMAT, "delete it")
    except (OSError, ArmillaryError):  # none, a damaged one, or one of another version: compare the files
        return None


def _write_stamp(folder: Path, stamp: dict[str, Any]) -> None:
    try:
        read_sealed(_stamp_file(folder), "stamp", STAMP_FORMAT, "delete it")
    except ForeignFileError:
        return  # left for the newer version that wrote it
    except (OSError, DamagedFileError):
        pass
    try:
        write_sealed(_stamp_file(folder), stamp)
    except OSError:
        return  # a disk that is full or read-only: the next opening compares the files again
