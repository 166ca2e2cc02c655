"""``ROOT/index/FINGERPRINT.json``: maps a recipe and its sources to the corpus built from them.

A file is sealed and contains its own fingerprint, which detects a file that was torn, edited or copied over another.
Files of format 1 hold only ``{"hash": ...}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armillary.corpus.contents import NAME as SOURCES
from armillary.corpus.contents import read_source_hashes
from armillary.corpus.manifest import is_hash
from armillary.recipe import ArmillaryError, DamagedFileError, read_json, read_sealed, write_sealed

FORMAT = 2
WHAT = "index of a corpus"
REMEDY = "delete the file; the next build reads the sources again"


@dataclass(frozen=True)
class IndexEntry:
    """The hash of the corpus, and the files that could not be read for a possibly temporary cause."""

    hash: str
    unreadable: tuple[str, ...] = ()


def index_file(root: Path, fingerprint: str) -> Path:
    """The path of a fingerprint's entry."""
    return root / "index" / f"{fingerprint}.json"


def write_index(root: Path, fingerprint: str, entry: IndexEntry) -> None:
    """Write the entry of a fingerprint."""
    document = {"format": FORMAT, "fingerprint": fingerprint, "hash": entry.hash, "unreadable": list(entry.unreadable)}
    write_sealed(index_file(root, fingerprint), document)


def read_index(root: Path, fingerprint: str) -> IndexEntry | None:
    """The entry of a fingerprint, or None.

    Raises:
        DamagedFileError: the file is torn, edited, or the entry of another fingerprint.
        ForeignFileError: it is of a newer format.
    """
    file = index_file(root, fingerprint)
    try:
        fields = read_sealed(file, WHAT, FORMAT, REMEDY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(file, error) from error
    if fields.get("fingerprint") != fingerprint or not is_hash(fields.get("hash")):
        raise DamagedFileError(f"{file}: {WHAT} belongs to another build; {REMEDY}")
    return IndexEntry(fields["hash"], tuple(fields.get("unreadable", ())))


def read_old_index(root: Path, fingerprint: str) -> IndexEntry | None:
    """The entry of a fingerprint of format 1, or None.

    Raises:
        DamagedFileError: the file is torn or edited.
    """
    file = index_file(root, fingerprint)
    try:
        fields = read_json(file, WHAT, REMEDY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(file, error) from error
    if list(fields) != ["hash"] or not is_hash(fields["hash"]):
        raise DamagedFileError(f"{file}: {WHAT} has no hash of a corpus; {REMEDY}")
    return IndexEntry(fields["hash"])


def check_index(root: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Each file of ``root/index`` that cannot be used: what is wrong with it, and the remedy."""
    for file in sorted((root / "index").glob("*.json")):
        if file.name.endswith(".verified.json") or file.name.startswith("."):
            continue
        try:
            if file.name == SOURCES:
                read_source_hashes(root)
                continue
            try:
                read_old_index(root, file.stem)
            except DamagedFileError:
                read_index(root, file.stem)
        except ArmillaryError as error:
            what, _, remedy = str(error).removeprefix(f"{file}: ").rpartition("; ")
            yield file, (what, remedy)


def _unreadable(file: Path, error: OSError) -> ArmillaryError:
    return ArmillaryError(f"{file}: {WHAT} cannot be read ({error.strerror}); make it readable")
