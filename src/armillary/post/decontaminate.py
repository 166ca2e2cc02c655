"""Removes training items that repeat evaluation items, and finds evaluation items that repeat their own training split.

The evaluation items are indexed and training items are read in batches, so memory depends only on the evaluation sets.
Each turn of an item is compared in four passes (``armillary.corpus.KnownItems``): as a whole, by runs of 13 units, by
the same runs with numbers masked, and as a near duplicate. The first pass with a match decides.

The items may have any format of `formats`, with tool calls too. Preference pairs are compared with both answers. Kept
items are copied unchanged, in the format of their file. ``dropped.jsonl`` has one row per removed item: the pass as
``reason``, the evaluation item as ``matched``, the share of it that was found as ``share``, and the removed ``item``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from armillary.corpus import KnownItem, KnownItems
from armillary.evaluate.tasks import evaluation_files, read_evaluation, read_split, split_of
from armillary.post.records import Record, read_records
from armillary.post.stage import Stage, StageSpec, open_stage
from armillary.recipe import UsageError

Progress = Callable[[int, int], None]
Note = Callable[[str], None]

NEAR = 0.5
PASSES = ("exact", "ngram", "masked", "near")
_BATCH_CHARS = 1 << 20
# Each split is checked against the earlier ones.
_ORDER = ("train", "valid", "dev", "test")


@dataclass(frozen=True)
class DecontaminateOptions:
    """How items are compared.

    Attributes:
        near: smallest Jaccard similarity of a near duplicate, above 0 and up to 1.
        whole: further evaluation files, of the same families as the items: only equal questions match.
        progress: called with the bytes of items read so far, and the total.
        note: called with each skipped part of the evaluation sets.
    """

    near: float = NEAR
    whole: tuple[Path, ...] = ()
    progress: Progress = lambda done, total: None
    note: Note = lambda text: None

    def __post_init__(self) -> None:
        _check_near(self.near)


def decontaminate(items: Path, against: Sequence[Path], out: Path, options: DecontaminateOptions) -> dict[str, Any]:
    """Copy ``items`` to ``out`` without those that repeat an evaluation item; return the record of the stage.

    Args:
        items: a file of items, conversations or pairs.
        against: evaluation files, and folders of them.
        out: folder of the stage; an unfinished one resumes.

    Raises:
        UsageError: no evaluation set, an unreadable file, a wrong row, or a folder with different inputs.
    """
    if not against and not options.whole:
        raise UsageError("no evaluation set; name files or folders with --against")
    sets = [one for path in against for one in read_evaluation(path, options.note)]
    for path in options.whole:
        for one in read_evaluation(path, options.note):
            named = [replace(item, name=f"{path.parent.name}/{item.name}", whole_only=True) for item in one.items]
            sets.append(replace(one, items=named))
    inputs = {"items": items, **{f"evaluation {one.path}": one.path for one in sets}}
    settings = {"near": options.near, **({"whole": len(options.whole)} if options.whole else {})}
    with open_stage(out, StageSpec("decontaminate", settings, inputs)) as stage:
        if stage.finished:
            return stage.finish()
        known = KnownItems([item for one in sets for item in one.items], options.near)
        total, done = items.stat().st_size, 0
        for batch in _batches(stage.pending(read_records(items))):
            _decide(stage, known, batch)
            done += sum(len(text.encode()) for one in batch for text in one.texts)
            options.progress(min(done, total), total)
        options.progress(total, total)
        return stage.finish({"evaluation": {str(one.path): len(one.items) for one in sets}})


@dataclass(frozen=True)
class Leak:
    """A row that repeats a row of an earlier split: file and line of both, the pass, and the share that was found."""

    item: str
    repeats: str
    by: str
    share: float


@dataclass(frozen=True)
class Leaks:
    """The rows of one split that repeat rows of another; ``counts`` are by pass."""

    data: str
    earlier: str
    split: str
    rows: int
    counts: dict[str, int] = field(default_factory=dict)
    leaks: tuple[Leak, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def find_leaks(path: Path, note: Note, near: float = NEAR) -> list[Leaks]:
    """Find rows of later splits that repeat earlier splits, such as test items in the training split.

    Files belong to one set if they are in one folder, or in sibling folders named after splits.

    Args:
        path: a folder with one or several sets; a file is compared with the earlier splits next to it.
        note: called with each set that has no other split to compare with.
        near: smallest similarity of a near duplicate.

    Raises:
        UsageError: a wrong file, or no two splits of one set.
    """
    _check_near(near)
    only = path if path.is_file() else None
    sets: dict[Path, dict[str, list[Path]]] = {}
    for file in evaluation_files(path if only is None else _home(path)):
        if split := split_of(file):
            sets.setdefault(_home(file), {}).setdefault(split, []).append(file)
    found = []
    for home, files in sorted(sets.items()):
        splits = {split: _items(files[split]) for split in _ORDER if split in files}
        splits = {split: items for split, items in splits.items() if items}
        if len(splits) < 2 and only is None:
            note(f"{home}: has only one split ({', '.join(splits)}), so nothing can leak into another")
        for place, earlier in enumerate(splits):
            known = KnownItems(splits[earlier], near)
            for split in list(splits)[place + 1 :]:
                if only is None or only in files[split]:
                    of = _items([only]) if only is not None else splits[split]
                    found.append(_leaks(known, (home.name, earlier, split), of))
    if not found:
        raise UsageError(
            f"{path}: no two splits of one evaluation set; splits are recognised by train, valid, dev and test in the "
            "name of the file or its folder"
        )
    return found


def _leaks(known: KnownItems, names: tuple[str, str, str], items: Sequence[KnownItem]) -> Leaks:
    texts = [["\n".join((item.question, *item.choices))] for item in items]
    leaks = [
        Leak(item.name, match.item, match.by, match.share)
        for item, match in zip(items, known.match(texts), strict=True)
        if match is not None
    ]
    return Leaks(*names, len(items), dict(Counter(leak.by for leak in leaks)), tuple(leaks))


def _items(files: Sequence[Path]) -> list[KnownItem]:
    read = [read_split(file) for file in files]
    return [item for one in read if one is not None for item in one.items]


def _home(file: Path) -> Path:
    """The folder of a file's set."""
    return file.parent.parent if split_of(Path(file.parent.name)) and file.parent.name != "" else file.parent


def _decide(stage: Stage, known: KnownItems, batch: Sequence[Record]) -> None:
    for one, match in zip(batch, known.match([one.texts for one in batch]), strict=True):
        if match is None:
            stage.keep_rows(one.id, [one.row])
        else:
            stage.drop(one.id, match.by, {"matched": match.item, "share": match.share, "item": dict(one.row)})


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch, chars = list[Record](), 0
    for one in records:
        batch.append(one)
        chars += sum(map(len, one.texts))
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _check_near(near: float) -> None:
    if not 0 < near <= 1:
        raise UsageError(f"near is {near}; give a similarity above 0 and at most 1")
