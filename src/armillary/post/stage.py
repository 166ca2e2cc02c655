"""A stage of post-training data: decides each input once, in a folder that survives a kill at any time.

The folder holds:

- ``stage.json`` (sealed, format 1): the stage's name, settings and SHA-256 of its input files; written first;
- ``items.jsonl``: the kept items; ``dropped.jsonl``: the others, each row with ``reason``;
- ``decided.jsonl``: the journal, while the stage runs. Each decision has one row: its source, and the lengths of the
  two files after it. A decision is committed once its row is complete. Reopening truncates the two files to the last
  complete row, so a decision that keeps several items is atomic;
- ``answers.jsonl``: the answers of models (``generate.open_answers``);
- ``record.json`` (sealed, format 1): counts, lineage, and the SHA-256 of the two files; written last.

Memory: 16 bytes per source, and a buffer of a sixteenth of the sources. Sources are identified by 64 bits of their
hash: the probability of a collision among a million is 3e-8.

Not covered: several processes on one stage (a second one is refused).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from armillary.files import file_sha256, sync
from armillary.generate import Answers, Backend, open_answers
from armillary.post.items import Item, to_line
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    UsageError,
    exclusive,
    read_sealed,
    write_sealed,
)

FORMAT = 1
ITEMS = "items.jsonl"
DROPPED = "dropped.jsonl"
RECORD = "record.json"

_STAGE = "stage.json"
_JOURNAL = "decided.jsonl"
_FLUSH_S = 1.0
_BUFFER = 1 << 16


class Identified(Protocol):
    """An input of a stage: an item, or a row of another format."""

    @property
    def id(self) -> str:
        """Names the input."""


IdentifiedT = TypeVar("IdentifiedT", bound=Identified)


@dataclass(frozen=True)
class StageSpec:
    """The specification of a stage: equal specifications give equal items.

    Attributes:
        name: name of the stage, such as ``synthesize``.
        settings: everything its outcome depends on besides its inputs, as JSON.
        inputs: input files, by their role (``items``, ``evaluation`` …).
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The specification with the hash of each input.

        Raises:
            UsageError: an input cannot be read.
        """
        hashes = {}
        for name, path in self.inputs.items():
            try:
                hashes[name] = file_sha256(path)
            except OSError as error:
                raise UsageError(
                    f"{path}: {error.strerror}; stage {self.name} reads its {name} from this file"
                ) from None
        return {"stage": self.name, "settings": json.loads(json.dumps(dict(self.settings))), "inputs": hashes}


@contextlib.contextmanager
def open_stage(out: Path, spec: StageSpec) -> Iterator[Stage]:
    """Open the stage in the folder ``out``, which is created if missing; an interrupted stage resumes.

    Raises:
        BusyError: another process has it open.
        UsageError: the folder belongs to another stage, or settings or inputs have changed.
        DamagedFileError, ForeignFileError: a file in it is damaged, or not of this program.
        ArmillaryError: the folder cannot be written.
    """
    wanted = spec.to_json()
    with exclusive(out / ".lock", "runs a stage in this folder"):
        _check_folder(out, wanted)
        stage = Stage(out, wanted)
        try:
            yield stage
        finally:
            stage.close()


def read_record(out: Path) -> dict[str, Any]:
    """The record of a finished stage; its files are checked against it.

    Raises:
        UsageError: the stage in ``out`` has not finished.
        DamagedFileError: the record or a file of the stage was changed; one line per file.
        ForeignFileError: the record has a newer format.
    """
    try:
        record = read_sealed(out / RECORD, "record of a stage", FORMAT, _remedy(out))
    except FileNotFoundError:
        raise UsageError(f"{out}: contains no finished stage ({RECORD} is missing); finish it first") from None
    wrong = []
    for name, hashed in record["files"].items():
        try:
            good = file_sha256(out / name) == hashed
        except OSError:
            good = False
        if not good:
            wrong.append(f"{out / name}: is not what the stage wrote (changed or missing); {_remedy(out)}")
    if wrong:
        raise DamagedFileError("\n".join(wrong))
    return record


def check_stage(out: Path) -> None:
    """Compare the files of a stage with its description and, if it has finished, with its record.

    Raises:
        DamagedFileError: a file of the stage is missing or was changed.
        ForeignFileError: a file has a newer format.
    """
    try:
        read_sealed(out / _STAGE, "description of a stage", FORMAT, _remedy(out))
    except FileNotFoundError:
        raise DamagedFileError(f"{out / _STAGE}: is missing, although it is written first; {_remedy(out)}") from None
    if (out / RECORD).exists():
        read_record(out)


class Stage:
    """A stage opened by ``open_stage``.

    ``record`` is the record of a finished stage, else None. ``kept`` counts items and ``dropped`` counts rows by
    reason, including earlier processes.
    """

    def __init__(self, out: Path, spec: dict[str, Any]) -> None:
        self.out = out
        self.record = read_record(out) if (out / RECORD).exists() else None
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self._spec = spec
        self._decided, self._seen = Keys(), Keys()
        self._decisions = self._undecided = self._duplicates = 0
        self._models: list[dict[str, Any]] = []
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._flushed = time.monotonic()
        if self.record is not None:
            (out / _JOURNAL).unlink(missing_ok=True)  # left by a kill after the record was written
            self.kept, self.dropped = self.record["counts"]["kept"], Counter(self.record["counts"]["dropped"])
            return
        try:
            for name in (ITEMS, DROPPED, _JOURNAL):
                self._files[name] = os.open(out / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                self._sizes[name] = os.fstat(self._files[name]).st_size
            self._resume()
        except OSError as error:
            self._release()
            raise self._failed(error) from error
        except BaseException:
            self._release()
            raise

    @property
    def finished(self) -> bool:
        """Whether the stage has finished."""
        return self.record is not None

    @property
    def decisions(self) -> int:
        """The number of decided sources, including earlier processes."""
        return self._decisions

    def decided(self, source: str) -> bool:
        """Whether ``source`` has been kept or dropped, here or in an earlier process."""
        return source in self._decided

    def pending(self, items: Iterable[IdentifiedT]) -> Iterator[IdentifiedT]:
        """Yield the undecided input items of the stage. The caller must keep or drop each.

        An item whose id occurred earlier in ``items`` is skipped and counted in the record as a duplicate. A finished
        stage yields none.
        """
        if self.record is not None:
            return
        for item in items:
            if item.id in self._seen:
                self._duplicates += 1
                continue
            self._seen.add(item.id)
            if item.id not in self._decided:
                self._undecided += 1
                yield item

    def keep(self, source: str, items: Item | Sequence[Item]) -> None:
        """Decide ``source`` (the id of an input, or any name of a piece of work), and write the kept items.

        Raises:
            ArmillaryError: it cannot be written; everything before is kept.
        """
        kept = [items] if isinstance(items, Item) else items
        self.keep_rows(source, [item.to_json() for item in kept])

    def keep_rows(self, source: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Like ``keep``, for rows that are not items, such as preference pairs."""
        self._decide(source, ITEMS, rows)
        self.kept += len(rows)

    def drop(self, source: str, reason: str, row: Mapping[str, Any] | None = None) -> None:
        """Decide not to keep ``source``. ``reason`` is one of a few, since reasons are counted; ``row`` has details.

        Raises:
            ArmillaryError: it cannot be written; everything before is kept.
        """
        self._decide(source, DROPPED, [{"source": source, "reason": reason, **(row or {})}])
        self.dropped[reason] += 1

    @contextlib.contextmanager
    def answers(self, backend: Backend, name: str = "answers") -> Iterator[Answers]:
        """The answers of ``backend`` in this stage, kept in ``NAME.jsonl``; the record names the model."""
        with open_answers(self.out / f"{name}.jsonl", backend.identity) as answers:
            if backend.identity not in self._models:
                self._models.append(backend.identity)
            yield answers

    def finish(
        self, counts: Mapping[str, Any] | None = None, edges: Sequence[tuple[str, str, str]] = ()
    ) -> dict[str, Any]:
        """Write and return the record; ``counts`` are added to those of kept, dropped and duplicate items.

        ``edges`` are the lineage of further files of the stage.

        Raises:
            ArmillaryError: it cannot be written.
        """
        if self.record is not None:
            return self.record
        if self._undecided:
            raise RuntimeError(f"stage {self._spec['stage']}: {self._undecided} items of its input are undecided")
        try:
            self._flush()
            files = {name: file_sha256(self.out / name) for name in (ITEMS, DROPPED)}
            made = f"data:{files[ITEMS]}"
            record = {
                "format": FORMAT,
                **self._spec,
                "models": self._models,
                "counts": {
                    "decided": self._decisions,
                    "kept": self.kept,
                    "dropped": dict(sorted(self.dropped.items())),
                    "duplicates": self._duplicates,
                    **(counts or {}),
                },
                "files": files,
                "edges": [
                    [made, f"made by {self._spec['stage']} from its {name.partition(' ')[0]} in", f"data:{hashed}"]
                    for name, hashed in self._spec["inputs"].items()
                ]
                + [list(edge) for edge in edges],
            }
            write_sealed(self.out / RECORD, record)
            (self.out / _JOURNAL).unlink()
        except OSError as error:
            raise self._failed(error) from error
        self.record = read_record(self.out)
        return self.record

    def close(self) -> None:
        """Flush and close the files."""
        try:
            self._flush()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._release()

    def _decide(self, source: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.record is not None:
            raise RuntimeError(f"stage {self._spec['stage']} has finished; nothing can be decided any more")
        if source in self._decided:
            raise RuntimeError(f"stage {self._spec['stage']}: {source} is decided twice")
        lines = b"".join(to_line(row) for row in rows)
        before = dict(self._sizes)
        try:
            self._append(name, lines)
            entry = {"source": source, ITEMS: self._sizes[ITEMS], DROPPED: self._sizes[DROPPED]}
            self._append(_JOURNAL, to_line(entry))
        except OSError as error:
            self._cut(before)
            raise self._failed(error) from error
        except BaseException:
            self._cut(before)
            raise
        self._decided.add(source)
        self._decisions += 1
        self._undecided -= source in self._seen
        if time.monotonic() - self._flushed > _FLUSH_S:
            try:
                self._flush()
            except OSError as error:
                raise self._failed(error) from error

    def _append(self, name: str, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._files[name], rest) :]
        self._sizes[name] += len(lines)

    def _flush(self) -> None:
        # The journal is flushed last: after a power failure, it must not refer to missing rows.
        for name in (ITEMS, DROPPED, _JOURNAL):
            if name in self._files:
                os.fsync(self._files[name])
        self._flushed = time.monotonic()

    def _cut(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            os.ftruncate(self._files[name], size)
            self._sizes[name] = size

    def _resume(self) -> None:
        """Read the journal, and truncate all files to the last complete decision."""
        good = {ITEMS: 0, DROPPED: 0, _JOURNAL: 0}
        with open(self._files[_JOURNAL], "rb", closefd=False) as journal:
            for line in journal:
                entry = _entry(line)
                if entry is None or any(entry[name] > self._sizes[name] for name in (ITEMS, DROPPED)):
                    break
                self._decided.add(entry["source"])
                self._decisions += 1
                good = {ITEMS: entry[ITEMS], DROPPED: entry[DROPPED], _JOURNAL: good[_JOURNAL] + len(line)}
        self._cut(good)
        with open(self.out / ITEMS, "rb") as file:
            self.kept = sum(1 for _ in file)
        with open(self.out / DROPPED, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    self.dropped[json.loads(line)["reason"]] += 1
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise DamagedFileError(f"{self.out / DROPPED}:{number}: was changed; {_remedy(self.out)}") from None

    def _release(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _failed(self, error: OSError) -> ArmillaryError:
        return ArmillaryError(
            f"{error.filename or self.out}: {error.strerror}; all decisions so far are kept: make the folder writable "
            "or free space, and run the same command again"
        )


class Keys:
    """A set of texts in 8 bytes each: sorted hashes, and a buffer of the newest."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._latest: set[int] = set()

    def __contains__(self, text: str) -> bool:
        key = self._key(text)
        if key in self._latest:
            return True
        place = int(self._sorted.searchsorted(np.uint64(key)))
        return place < len(self._sorted) and int(self._sorted[place]) == key

    def add(self, text: str) -> None:
        self._latest.add(self._key(text))
        # The buffer grows with the set, so that merging stays cheap.
        if len(self._latest) > max(_BUFFER, len(self._sorted) // 16):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted = np.sort(np.concatenate([self._sorted, latest]))
            self._latest.clear()

    @staticmethod
    def _key(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _check_folder(out: Path, wanted: dict[str, Any]) -> None:
    """Write ``stage.json`` into a new folder; refuse a folder with other content."""
    path = out / _STAGE
    try:
        there = read_sealed(path, "description of a stage", FORMAT, _remedy(out))
    except FileNotFoundError:
        for name in (ITEMS, DROPPED, _JOURNAL, RECORD):
            if (out / name).exists():
                raise ForeignFileError(
                    f"{out / name}: exists without a {_STAGE} next to it; give another folder. It was not changed"
                ) from None
        try:
            write_sealed(path, {"format": FORMAT, **wanted})
            sync(out)
        except OSError as error:
            raise ArmillaryError(f"{path}: {error.strerror}; give a writable folder") from error
        return
    if there["stage"] != wanted["stage"]:
        raise UsageError(f"{out}: belongs to the stage {there['stage']}, not to {wanted['stage']}; give another folder")
    changed = []
    parts = ("settings",) if _by_role(there["inputs"]) == _by_role(wanted["inputs"]) else ("settings", "inputs")
    for part in parts:
        for name in sorted({**there[part], **wanted[part]}):
            before, now = there[part].get(name), wanted[part].get(name)
            if before != now:
                of = "input " if part == "inputs" else ""
                changed.append(f"{of}{name} was {_short(before)} and is {_short(now)}")
    if changed:
        raise UsageError(
            f"{out}: this stage began with other settings or inputs ({'; '.join(changed)}); give another folder, or "
            "remove this one to start over"
        )


def _by_role(inputs: Mapping[str, str]) -> list[tuple[str, str]]:
    """The hashes of the inputs with their role; a role such as ``evaluation PATH`` is the same after a move."""
    return sorted((name.partition(" ")[0], hashed) for name, hashed in inputs.items())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:56]}…"


def _entry(line: bytes) -> dict[str, Any] | None:
    """A row of the journal; None if it is torn."""
    try:
        row = json.loads(line)
        good = line.endswith(b"\n") and isinstance(row["source"], str)
        return row if good and all(isinstance(row[name], int) for name in (ITEMS, DROPPED)) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _remedy(out: Path) -> str:
    return f"remove the folder {out} to run the stage again"
