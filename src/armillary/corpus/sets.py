"""Sets of tokenized data beside a corpus: folders named by the hash of their content, sealed, never changed.

A kind of set (examples, pairs) names its files and its folder below the corpus. A set is written under a hidden name
and renamed, so it appears atomically. Opening compares a set with its manifest.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from armillary.corpus.shards import Corpus
from armillary.files import aside, sync
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    UsageError,
    canonical_hash,
    problem_of,
    read_sealed,
    write_sealed,
)

FORMAT = 1

SetT = TypeVar("SetT")
Stamps = tuple[tuple[int, int, int], ...]
"""Size, time of change and inode of each file of a set."""


@dataclass(frozen=True)
class SetKind:
    """A kind of set: its ``name`` is that of its folder below the corpus, ``writer`` the function that writes one.

    The content hash covers corpus, name, type of the tokens, files, and the manifest's entries ``hashed``.
    """

    name: str
    files: tuple[str, ...]
    writer: str
    hashed: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """What to do about a damaged set."""
        return f"write the {self.name} again ({self.writer}), which gives the same hash"

    def content_hash(self, manifest: dict[str, Any]) -> str:
        """The hash that names the set of ``manifest``."""
        keys = ("corpus", "name", "dtype", "files", *self.hashed)
        return canonical_hash({key: manifest.get(key) for key in keys})


def write_set(kind: SetKind, corpus: Corpus, name: str, fill: Callable[[Path], dict[str, Any]]) -> str:
    """Call ``fill`` to write the files of a set into a hidden folder, and return the set's hash.

    ``fill`` returns further entries of the manifest. Writing the same content again gives the same set.

    Raises:
        ArmillaryError: the files cannot be written. Errors of ``fill`` are passed on. In both cases nothing is left.
    """
    root = corpus.path / kind.name
    hidden = aside(root / "new")
    try:
        hidden.mkdir(parents=True)
        more = fill(hidden)
        manifest = {
            "format": FORMAT,
            "corpus": corpus.hash,
            "name": name,
            "dtype": corpus.manifest.dtype,
            **more,
            "files": {file: hashlib.sha256((hidden / file).read_bytes()).hexdigest() for file in kind.files},
        }
        manifest["hash"] = kind.content_hash(manifest)
        write_sealed(hidden / "manifest.json", manifest)
        for file in kind.files:
            sync(hidden / file)
        sync(hidden)
        folder = root / str(manifest["hash"])
        try:
            hidden.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            try:
                compare_set(kind, folder, read_manifest(kind, folder, corpus.hash))
            except (DamagedFileError, FileNotFoundError):  # the existing set is torn: replace it
                shutil.rmtree(folder)
                hidden.rename(folder)
        sync(root)
    except OSError as error:
        raise ArmillaryError(
            f"{root}: cannot be written ({error.strerror}); free space or choose another disk"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return str(manifest["hash"])


def verify_sets(kind: SetKind, corpus: Path, name: str) -> list[FileProblem]:
    """Everything wrong with the sets of corpus ``name`` in the folder ``corpus``; unfinished sets are skipped."""
    problems = []
    for folder in sorted(path for path in (corpus / kind.name).glob("*") if not path.name.startswith(".")):
        try:
            of = read_manifest(kind, folder, name)
        except FileNotFoundError:
            problems.append(FileProblem(folder / "manifest.json", "is missing", kind.remedy))
            continue
        except OSError as error:
            problems.append(problem_of(folder / "manifest.json", error, "make it readable"))
            continue
        except ArmillaryError as error:
            problems.append(problem_of(folder / "manifest.json", error, kind.remedy))
            continue
        for file in kind.files:
            try:
                if hashlib.sha256((folder / file).read_bytes()).hexdigest() != of["files"].get(file):
                    problems.append(
                        FileProblem(folder / file, "was changed or damaged after it was written", kind.remedy)
                    )
            except FileNotFoundError:
                problems.append(FileProblem(folder / file, "is missing", kind.remedy))
            except OSError as error:
                problems.append(problem_of(folder / file, error, "make it readable"))
    return problems


def open_set(kind: SetKind, corpus: Corpus, name: str, read: Callable[[Path, dict[str, Any]], SetT]) -> SetT:
    """Open the set of ``corpus`` with the hash ``name``: ``read`` of its folder and its manifest.

    Many runs of one process read the same set, so it is compared with its manifest once per version of its files.

    Raises:
        UsageError: the corpus has no such set.
        DamagedFileError: a file is missing, torn or changed.
        ForeignFileError: it is of a newer format, or belongs to another corpus.
        ArmillaryError: a file cannot be read.
    """
    folder = corpus.path / kind.name / name
    try:
        manifest = read_manifest(kind, folder, corpus.hash)
    except (FileNotFoundError, NotADirectoryError) as error:
        known = sorted(
            p.parent.name for p in folder.parent.glob("*/manifest.json") if not p.parent.name.startswith(".")
        )
        there = f"it has {', '.join(known)}" if known else f"it has none ({kind.writer})"
        raise UsageError(f"corpus {corpus.hash}: no {kind.name} {name}; {there}") from error
    except OSError as error:
        raise ArmillaryError(f"{folder}: cannot be read ({error.strerror}); make it readable and try again") from error
    try:
        stats = [(folder / file).stat() for file in kind.files]
    except OSError as error:
        raise DamagedFileError(
            f"{error.filename}: is missing or cannot be read ({error.strerror}); {kind.remedy}"
        ) from error
    stamps = tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)
    return cast(SetT, _compared(kind, folder, corpus.hash, (canonical_hash(manifest), read, stamps)))


@lru_cache(maxsize=8)
def _compared(kind: SetKind, folder: Path, corpus: str, version: tuple[str, Callable[..., Any], Stamps]) -> Any:
    manifest = read_manifest(kind, folder, corpus)
    compare_set(kind, folder, manifest)
    _, read, _ = version
    return read(folder, manifest)


def compare_set(kind: SetKind, folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the files of a set with its manifest.

    Raises:
        DamagedFileError: a file is missing, unreadable or changed.
    """
    for file in kind.files:
        try:
            found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        except OSError as error:
            raise DamagedFileError(
                f"{folder / file}: is missing or cannot be read ({error.strerror}); {kind.remedy}"
            ) from error
        if found != manifest["files"].get(file):
            raise DamagedFileError(f"{folder / file}: was changed or damaged after it was written; {kind.remedy}")


def read_manifest(kind: SetKind, folder: Path, corpus: str) -> dict[str, Any]:
    """The manifest of the set in ``folder``, which belongs to the corpus with the hash ``corpus``.

    Raises:
        OSError: it is missing or cannot be read.
        DamagedFileError, ForeignFileError: as ``open_set``.
    """
    manifest = read_sealed(folder / "manifest.json", f"manifest of {kind.name}", FORMAT, kind.remedy)
    if manifest.get("corpus") != corpus:
        raise ForeignFileError(f"{folder}: belongs to corpus {manifest.get('corpus')}, not to {corpus}")
    if manifest.get("hash") != folder.name or kind.content_hash(manifest) != folder.name:
        raise DamagedFileError(
            f"{folder / 'manifest.json'}: belongs to other {kind.name} than its folder is named after; {kind.remedy}"
        )
    return manifest
