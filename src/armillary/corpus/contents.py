"""The SHA-256 of every source file, by which a copy of a workspace finds the corpus of the same text.

``ROOT/index/sources.json`` holds size, modification time and hash of each file, by its path relative to ``ROOT``. A
workspace that is moved or copied together with its sources keeps these paths. A file is hashed again only if its size
or time differs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote_from_bytes

from armillary.corpus.find import SourceFile
from armillary.recipe import ArmillaryError, DamagedFileError, read_sealed, write_sealed

FORMAT = 1
NAME = "sources.json"
WHAT = "hashes of the sources"
REMEDY = "delete the file; the next build hashes the sources again"

_Known = dict[str, tuple[int, str, str]]  # relative path: size, version, hash


def source_hashes(
    root: Path, files: Iterable[SourceFile], progress: Callable[[int, int], None]
) -> dict[str, str] | None:
    """The hash of each file by its path; for a URL, the version that its file system reports.

    Args:
        root: folder of corpora, whose ``index/sources.json`` is read and written.
        files: the source files.
        progress: called with the bytes that were hashed, and those to hash.

    Returns:
        None if a file cannot be read now.
    """
    files = list(files)
    place = os.path.abspath(root)  # noqa: PTH100 (keeps links as they are)
    try:
        known, ours = read_source_hashes(root), True
    except DamagedFileError:
        known, ours = {}, True
    except ArmillaryError:
        known, ours = {}, False  # left for the newer version that wrote it, or not readable now
    hashes, unknown = {}, []
    for file in files:
        recorded = known.get(_relative(file, place))
        if "://" in file.path:
            hashes[file.path] = file.version
        elif recorded is not None and recorded[:2] == (file.size, file.version):
            hashes[file.path] = recorded[2]
        else:
            unknown.append(file)
    done, total = 0, sum(file.size for file in unknown)
    try:
        with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
            for file, found in zip(unknown, threads.map(_hash, unknown), strict=True):
                hashes[file.path] = found
                done += file.size
                progress(done, total)
    except OSError:
        return None
    local = {_relative(file, place): (file.size, file.version, hashes[file.path]) for file in files if _is_here(file)}
    if ours and local != known:
        write_sealed(root / "index" / NAME, {"format": FORMAT, "files": local})
    return hashes


def read_source_hashes(root: Path) -> _Known:
    """The entries of ``index/sources.json``; empty if it is missing.

    Raises:
        DamagedFileError: the file is torn or edited.
        ForeignFileError: it is of a newer format.
        ArmillaryError: it cannot be read now.
    """
    path = root / "index" / NAME
    try:
        entries = read_sealed(path, WHAT, FORMAT, REMEDY)["files"]
        return {name: (int(size), str(version), str(found)) for name, (size, version, found) in entries.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ArmillaryError(f"{path}: {WHAT} cannot be read ({error.strerror}); make it readable") from error
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: {WHAT} has no list of files; {REMEDY}") from error


def unchanged(files: Iterable[SourceFile]) -> bool:
    """Whether the local files still have the sizes and times with which they were found."""
    try:
        return all(
            (status := Path(file.path).stat()).st_size == file.size and str(status.st_mtime_ns) == file.version
            for file in files
            if _is_here(file)
        )
    except OSError:
        return False


def _is_here(file: SourceFile) -> bool:
    return "://" not in file.path


def _relative(file: SourceFile, place: str) -> str:
    # JSON cannot hold a name that is not UTF-8, so it is percent-encoded.
    return quote_from_bytes(os.fsencode(os.path.relpath(file.path, place)))


def _hash(file: SourceFile) -> str:
    with open(file.path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
