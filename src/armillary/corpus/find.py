"""Finds the files of a domain.

A folder is searched to any depth, in the order of the paths. A linked folder is followed once. The following entries
are skipped, and each kind is reported in one line with a count:

- hidden files and folders, and leftovers of archives and data engines;
- folders of installed packages (virtual environments, ``node_modules``), unless the source itself is one;
- files of other kinds, and entries that are neither file nor folder (a named pipe is never opened);
- links that are broken, circular, or lead to something that is read anyway;
- folders that this program wrote.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from armillary.corpus.demo import demo_files
from armillary.corpus.problems import Problem, shown
from armillary.recipe import ArmillaryError, DomainSpec, UsageError

READERS = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
}
# Leftovers of archives (macOS), notebooks, Spark, Delta Lake and Python. Names that start with a dot are hidden anyway.
LEFTOVERS = {"__MACOSX", "_temporary", "__pycache__", "_delta_log", "_spark_metadata", "_SUCCESS", "lost+found"}
LEFTOVER_FILES = ("_metadata", "_common_metadata", "_committed_", "_started_")
# Folders of installed packages, by their names or by what lies in an environment of Python or conda.
PACKAGE_FOLDERS = {"node_modules", "bower_components", "site-packages", "dist-packages", "__pypackages__"}
ENVIRONMENTS = ("pyvenv.cfg", "conda-meta/history")
# Files that identify a folder written by this program: a workspace, a folder of corpora, a corpus, a run, a published
# or fine-tuned model, a stage of post-training, an examination.
OWN_FOLDERS = (
    ("store/store.sqlite",),
    ("store/runs",),
    ("corpus/index", "corpus/.lock"),
    ("index", ".lock"),
    ("manifest.json", "tokenizer.json", "validation"),
    ("spec.json", "events.jsonl"),
    ("lineage.json", "config.json"),
    ("record.json", "config.json"),
    ("settings.json", "model/config.json"),
    ("stage.json", "items.jsonl"),
    ("held-out/stage.json", "questions/stage.json"),
    ("results.json", "items"),
)
NAMED = 3  # example names per kind of skipped entry

HIDDEN = "hidden or temporary, not read"
PACKAGES = "folders of installed packages (environments, node_modules, site-packages), not read"
OTHER_KINDS = "skipped files of other kinds"
NOT_FILES = "neither a file nor a folder (a named pipe, a socket or a device), not read"
DEAD_LINKS = "broken links, not read"
KNOWN_LINKS = "links to files that are read already, or in a loop, not followed"
OWN = "written by armillary (a workspace, a corpus, a run or items), not read as text"


@dataclass(frozen=True)
class SourceFile:
    """One file: absolute path or URL, size in bytes, a version that changes with its content, and its reader."""

    path: str
    size: int
    version: str
    reader: str


@dataclass
class _Listing:
    """The result of a walk: regular files by path, and skipped entries by reason."""

    files: dict[str, os.stat_result] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def leave(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)


def find_files(domain: str, spec: DomainSpec, own: Collection[Path] = ()) -> tuple[list[SourceFile], list[Problem]]:
    """The files of a domain, sorted by path, and the skipped entries. ``own`` are folders that are always skipped.

    Raises:
        UsageError: the source does not exist, or holds no file of a known kind; an unknown or uninstalled demo domain.
        ArmillaryError: a remote source cannot be listed now.
    """
    if spec.source.startswith("demo:"):
        paths = demo_files(spec.source.removeprefix("demo:"))
        return [_local(str(path), path.stat(), spec.source) for path in paths], []
    where = f"domain '{domain}': source {shown(spec.source)}"
    if "://" in spec.source:
        files, listing, root = _list_elsewhere(spec.source, where)
    else:
        root = os.path.abspath(Path(spec.source).expanduser())  # noqa: PTH100 (keeps links as they are)
        listing = _list_here(root, {os.path.realpath(path) for path in own}, where)
        files = []
        for path, status in sorted(listing.files.items()):
            if (reader := _reader(path)) is not None:
                files.append(_local(path, status, reader))
            else:
                listing.leave(OTHER_KINDS, path)
    if not files:
        reasons = "; ".join(problem.message for problem in [*listing.problems, *_left_out(root, listing)])
        raise UsageError(
            f"{where}: no file of a known kind; these are read: {', '.join(READERS)}"
            + (f" ({reasons})" * bool(reasons))
        )
    return files, [*listing.problems, *_left_out(spec.source, listing)]


def old_files(spec: DomainSpec) -> list[SourceFile]:
    """The files of a local domain by the rules of format 1, to recognise a corpus that was built by these rules.

    Raises:
        OSError: a dangling link, at which such a build failed.
    """
    if spec.source.startswith("demo:"):
        return find_files("", spec)[0]
    root = os.path.abspath(Path(spec.source).expanduser())  # noqa: PTH100
    found = sorted(LocalFileSystem().find(root, detail=True))
    return [_local(path, Path(path).stat(), reader) for path in found if (reader := _reader(path)) is not None]


def _reader(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    suffix = next((s for s in sorted(READERS, key=len, reverse=True) if name.endswith(s)), None)
    return READERS[suffix] if suffix else None


def _local(path: str, status: os.stat_result, reader: str) -> SourceFile:
    return SourceFile(path, status.st_size, str(status.st_mtime_ns), reader)


def _list_here(root: str, own: set[str], where: str) -> _Listing:
    try:
        mode = Path(root).stat().st_mode
    except OSError as error:
        if Path(root).is_symlink():
            to = shown(os.readlink(root))  # noqa: PTH115 (a text)
            raise UsageError(
                f"{where}: is a link to {to}, which cannot be reached; give the path that it stands for"
            ) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UsageError(f"{where}: {_why_nothing(LocalFileSystem(), root)}") from error
        raise UsageError(f"{where}: cannot be read ({error.strerror}); make it readable") from error
    listing = _Listing()
    if stat.S_ISREG(mode):
        listing.files[root] = Path(root).stat()
    elif stat.S_ISDIR(mode):
        _Walk(root, own, listing).run()
        if not (listing.files or listing.left_out or listing.problems):
            raise UsageError(f"{where}: the folder is empty; these are read: {', '.join(READERS)}")
    else:
        raise UsageError(
            f"{where}: is neither a file nor a folder (a pipe, a socket or a device); give the path of a file or "
            "a folder"
        )
    return listing


class _Walk:
    """A walk through a folder: first its own folders, then linked folders, each once."""

    def __init__(self, root: str, own: set[str], listing: _Listing) -> None:
        self._root, self._own, self._listing = root, own, listing
        self._folders = deque([root])
        self._linked_folders: deque[str] = deque()
        self._linked_files: list[str] = []
        real = os.path.realpath(root)
        self._in_packages = _is_packages(root)
        self._seen = {real}
        self._above = {str(parent) for parent in Path(real).parents}

    def run(self) -> None:
        while self._folders or self._linked_folders:
            if self._folders:
                self._list(self._folders.popleft())
                continue
            link = self._linked_folders.popleft()
            real = os.path.realpath(link)
            # A link to a folder above the source would add the source itself and its siblings.
            if real in self._seen or real in self._above:
                self._listing.leave(KNOWN_LINKS, link)
            elif real in self._own or _is_own(real):
                self._listing.leave(OWN, link)
            elif not self._in_packages and (_is_packages(link) or _is_packages(real)):
                self._listing.leave(PACKAGES, link)
            else:
                self._seen.add(real)
                self._folders.append(link)
        known = {os.path.realpath(path) for path in self._listing.files} if self._linked_files else set()
        for link in sorted(self._linked_files):
            real = os.path.realpath(link)
            if real in known:
                self._listing.leave(KNOWN_LINKS, link)
            else:
                known.add(real)
                self._listing.files[link] = Path(link).stat()

    def _list(self, folder: str) -> None:
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    self._take(entry)
        except OSError as error:
            problem = Problem(shown(folder), "cannot be read", f" ({error.strerror})", passing=True)
            self._listing.problems.append(problem)

    def _take(self, entry: os.DirEntry[str]) -> None:
        name, path, listing = entry.name, entry.path, self._listing
        if name.startswith(".") or name in LEFTOVERS or name.startswith(LEFTOVER_FILES) or name.endswith(".crc"):
            listing.leave(HIDDEN, path)
            return
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                listing.leave(DEAD_LINKS, path)
            else:  # a cause that may pass, such as a network file system that does not answer
                problem = Problem(shown(path), "cannot be read", f" ({error.strerror})", passing=True)
                listing.problems.append(problem)
            return
        if stat.S_ISDIR(status.st_mode):
            if entry.is_symlink():
                self._linked_folders.append(path)
                return
            real = os.path.realpath(path)
            if real in self._own or _is_own(path):
                listing.leave(OWN, path)
            elif not self._in_packages and _is_packages(path):
                listing.leave(PACKAGES, path)
            elif real in self._seen:
                listing.leave(KNOWN_LINKS, path)
            else:
                self._seen.add(real)
                self._folders.append(path)
        elif not stat.S_ISREG(status.st_mode):
            listing.leave(NOT_FILES, path)
        elif entry.is_symlink():
            self._linked_files.append(path)
        else:
            listing.files[path] = status


def _is_own(folder: str) -> bool:
    return any(all(Path(folder, name).exists() for name in names) for names in OWN_FOLDERS)


def _is_packages(folder: str) -> bool:
    path = Path(folder)
    return path.name in PACKAGE_FOLDERS or any((path / name).exists() for name in ENVIRONMENTS)


def _list_elsewhere(source: str, where: str) -> tuple[list[SourceFile], _Listing, str]:
    if "::" in source:
        raise UsageError(f"{where}: files within an archive are not read; unpack it, and give the folder")
    try:
        filesystem, root = fsspec.url_to_fs(source)
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
        nothing = None if found else _why_nothing(filesystem, root)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:  # each remote file system has its own exceptions, not only OSError
        raise ArmillaryError(f"{where}: cannot be listed ({error}); try again when it can be reached") from error
    if nothing is not None:
        raise UsageError(f"{where}: {nothing}")
    files, listing, top = [], _Listing(), root.rstrip("/")
    environments = {
        path.removesuffix(f"/{name}") for path in found for name in ENVIRONMENTS if path.endswith(f"/{name}")
    }
    in_packages = top in environments or top.rpartition("/")[2] in PACKAGE_FOLDERS
    for path, info in sorted(found.items()):
        below = path.removeprefix(root).strip("/").split("/")
        folders = {f"{top}/{'/'.join(below[:depth])}" for depth in range(1, len(below))}
        reader = _reader(path)
        if any(name.startswith(".") or name in LEFTOVERS for name in below):
            listing.leave(HIDDEN, path)
        elif not in_packages and (PACKAGE_FOLDERS & set(below[:-1]) or environments & folders):
            listing.leave(PACKAGES, path)
        elif reader is None:
            listing.leave(OTHER_KINDS, path)
        else:
            url = filesystem.unstrip_protocol(path)
            files.append(SourceFile(url, int(info["size"] or 0), filesystem.ukey(path), reader))
    return files, listing, root


def _left_out(source: str, listing: _Listing) -> list[Problem]:
    """One problem per reason, with a count and examples."""
    problems = []
    for reason, paths in listing.left_out.items():
        if reason == OTHER_KINDS:
            kinds = Counter(Path(path).suffix or "without a suffix" for path in paths).most_common()
            named = ", ".join(f"{count} {shown(suffix)}" for suffix, count in sorted(kinds[:8])) + ", …" * (
                len(kinds) > 8
            )
            detail = f" ({named}); read: {', '.join(READERS)}"
        else:
            names = [shown(path.removeprefix(source).lstrip("/")) for path in sorted(paths)[:NAMED]]
            detail = f": {len(paths)} ({', '.join(names)}{', …' * (len(paths) > NAMED)})"
        problems.append(Problem(shown(source), reason, detail))
    return problems


def _why_nothing(filesystem: Any, root: str) -> str:
    """Why no file was found in a source."""
    if filesystem.isdir(root):
        return f"the folder is empty; these are read: {', '.join(READERS)}"
    parent, _, name = root.rstrip("/").rpartition("/")
    try:
        siblings = [str(path).rstrip("/").rpartition("/")[2] for path in filesystem.ls(parent or "/", detail=False)]
    except OSError:
        return f"does not exist, nor does its folder {shown(parent)}; give the path of a file or a folder"
    match = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    holds = ", ".join(shown(name) for name in sorted(siblings)[:10]) or "nothing"
    hint = f"did you mean '{shown(match[0])}'?" if match else f"{shown(parent)} contains {holds}"
    return f"does not exist; {hint}"
