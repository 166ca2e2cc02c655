"""Finds the items of an examination that occur in the model's training text, and scores without them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from armillary.corpus import Corpus, find_overlap, training_texts
from armillary.evaluate.results import Examination
from armillary.evaluate.tasks.examine import Contamination
from armillary.recipe import UsageError

_BLOCK = 1 << 20
# Overlap of two blocks, so that an item across their border is found in one of them.
_SHARED = 1 << 13


@dataclass(frozen=True)
class CleanScore:
    """A score with and without the contaminated items; ``clean`` is None if no item is left.

    ``not_judged`` counts items that are too short to judge; they stay in ``clean``.
    """

    task: str
    metric: str
    items: int
    contaminated: int
    not_judged: int
    value: float
    clean: float | None


def contamination_in(paths: Sequence[Path]) -> Contamination:
    """A function that searches ``paths`` for texts and returns the overlap of each (``find_overlap``).

    A path is a corpus, a file, or a folder, which is read recursively. In JSON Lines, every text of a row counts, in
    any field.

    Raises:
        UsageError: a path that does not exist; when called, a file that cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give the training text, or a corpus")

    def look(texts: Sequence[str]) -> list[Mapping[str, Any]]:
        documents = (document for path in paths for document in _documents(path))
        return [{**asdict(one), "contaminated": one.contaminated} for one in find_overlap(texts, documents)]

    return look


def clean_scores(examination: Examination) -> list[CleanScore]:
    """The mean of each metric over all searched items of a task, and over those without contamination."""
    scores = []
    for task, items in examination.items.items():
        looked = [item for item in items if item.contaminated is not None]
        for metric in dict.fromkeys(metric for item in looked for metric in item.scores):
            rows = [(item.scores[metric], dict(item.contaminated or {})["contaminated"]) for item in looked]
            clean = [score for score, found in rows if not found]
            scores.append(
                CleanScore(
                    *(task, metric, len(rows), len(rows) - len(clean), sum(found is None for _, found in rows)),
                    value=sum(score for score, _ in rows) / len(rows),
                    clean=sum(clean) / len(clean) if clean else None,
                )
            )
    return scores


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir() and (path / "manifest.json").exists():
        yield from training_texts(Corpus.open(path))
    elif path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith(".")):
            yield from _documents(file)
    else:
        try:
            with _opened(path) as text:
                rows = path.name.removesuffix(".gz").endswith(".jsonl")
                yield from _rows(path, text) if rows else _blocks(path, text)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 (byte {error.start} of a block); convert it first") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from None


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def _rows(path: Path, file: IO[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield f"{path}:{number}", "\n".join(_texts(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}:{number}: not JSON ({error}); write one value per line") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _blocks(path: Path, file: IO[str]) -> Iterator[tuple[str, str]]:
    before, number = "", 0
    while block := file.read(_BLOCK):
        number += 1
        yield f"{path}: part {number}", before + block
        before = block[-_SHARED:]
