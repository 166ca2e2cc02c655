"""The folder of an examination: ``results.json`` with one score per task, subset and metric, and one row per item.

``results.json`` is sealed and holds the hash of each file in ``items/``, so that a score always belongs to the items
beside it. It is written last: a killed examination leaves item files without results, never results without items.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from armillary.files import write_file
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError, canonical_hash, read_sealed, write_sealed

FORMAT = 2  # 2 added context_cut
RESULTS = "results.json"
ITEMS = "items"
ANSWERS = "answers.jsonl"

_REMEDY = "run the examination again (`armillary evaluate … --out` requests only the answers missing in answers.jsonl)"
# The beginning of a local path: absolute, in the home folder, relative, or with a drive letter.
_PATH = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Item:
    """One question: the model's outputs, the extracted answer, and the scores.

    Attributes:
        id: hash of task, subset and the item's own data; the same for every model and setting (``item_id``).
        subset: part of the task, such as a school subject; the task's name if it has no parts.
        cluster: name shared by items with a common passage; equal to ``id`` for an item on its own.
        settings: hash of prompt template, few-shot examples, extractor and generation settings.
        gold: correct answer, as in the task's data.
        outputs: raw texts of the model; for a choice by likelihood, the log probabilities as text.
        answer: answer that the task's extractor took from the outputs; None if it found none.
        second_answer: answer of the second, independent extractor; None if it found none or the task has no second one.
        scores: score by metric.
        truncated: whether the token limit cut one of the outputs.
        contaminated: overlap of the item with the training text; None without a search.
        context_cut: tokens cut from the start of the longest prompt because it exceeded the context.
    """

    id: str
    subset: str
    cluster: str
    settings: str
    gold: Any
    outputs: tuple[str, ...]
    answer: Any
    second_answer: Any
    scores: Mapping[str, float]
    truncated: bool = False
    contaminated: Mapping[str, Any] | None = None
    context_cut: int = 0


@dataclass(frozen=True)
class Result:
    """One score with its interval.

    Attributes:
        value, low, high: mean over the items and its 95 % interval.
        n: number of items.
        truncated: share of items with an output cut by the token limit.
        extraction_disagreement: share of items on which the two extractors differ; None without a second one.
        context_cut: share of items whose prompt lost its start because it exceeded the model's context.
    """

    task: str
    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    truncated: float
    extraction_disagreement: float | None
    settings: str
    context_cut: float = 0.0


@dataclass(frozen=True)
class Examination:
    """The content of an examination folder.

    Attributes:
        results: scores, in the order of the tasks; a subset named like the task is the whole task.
        items: rows of each task, by task.
        model: identity of the model (``Backend.identity``), with its lineage if a store has it.
        backend: the engine that answered, with its version, and the program that scored (``engine_of``).
        cost: tokens, seconds and money.
    """

    results: tuple[Result, ...]
    items: Mapping[str, tuple[Item, ...]]
    model: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields except the items, as plain data."""
        return {
            "results": [asdict(result) for result in self.results],
            "model": dict(self.model),
            "backend": dict(self.backend),
            "cost": dict(self.cost),
        }


def named_model(identity: Mapping[str, Any]) -> dict[str, Any]:
    """``identity`` for the results. Some servers report a local path as the model; only its last part is kept.

    A model's id on a hub, ``org/name``, is unchanged.
    """
    name = identity.get("model")
    if isinstance(name, str) and _PATH.match(name):
        return {**identity, "model": re.split(r"[/\\]", name.rstrip("/\\"))[-1].removesuffix(".gguf") or name}
    return dict(identity)


def engine_of(identity: Mapping[str, Any], harness: str) -> dict[str, Any]:
    """The engine in a backend's ``identity``, with version and precision if stated, and ``harness``."""
    stated = {name: identity[name] for name in ("version", "precision") if identity.get(name) is not None}
    return {"engine": identity.get("backend"), **stated, "harness": harness}


def read_examinations(places: str) -> list[Examination]:
    """The examinations in ``places``: one folder, or several separated by commas.

    Raises:
        UsageError, DamagedFileError, ForeignFileError: as ``read_examination``.
    """
    folders = [places] if Path(places).exists() else [place.strip() for place in places.split(",")]
    return [read_examination(Path(folder)) for folder in folders if folder]


def item_id(task: str, subset: str, data: Any) -> str:
    """Hash of an item's own data, 16 hexadecimal digits. Items of two examinations are paired by it."""
    return canonical_hash({"task": task, "subset": subset, "data": data})


def write_examination(folder: Path, examination: Examination) -> None:
    """Write the items of each task, then ``results.json``. Item files of other tasks in ``folder`` are left alone.

    Raises:
        UsageError: a task name that cannot be a file name.
        ArmillaryError: two items of one task have the same id, or the folder cannot be written.
    """
    hashes, files = {}, {}
    for task, items in examination.items.items():
        if not _TASK.fullmatch(task):
            raise UsageError(
                f"task {task!r}: use only letters, digits, '.', '_' and '-', because files are named after it"
            )
        seen: dict[tuple[str, str], int] = {}
        for number, item in enumerate(items, 1):
            if (other := seen.setdefault((item.subset, item.id), number)) != number:
                raise ArmillaryError(f"{task}: items {other} and {number} have the same id {item.id}")
        text = "".join(json.dumps(asdict(item), ensure_ascii=False, allow_nan=False) + "\n" for item in items)
        data = text.encode("utf-8", "surrogatepass")
        hashes[task] = sha256(data).hexdigest()
        files[folder / ITEMS / f"{task}.jsonl"] = data
    document = {"format": FORMAT, **examination.to_json(), "items": hashes}
    try:
        for path, data in files.items():
            write_file(path, data)
        write_sealed(folder / RESULTS, document)
    except OSError as error:
        raise ArmillaryError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def read_examination(folder: Path) -> Examination:
    """The examination in ``folder``, which may also be the path of its ``results.json``.

    Raises:
        UsageError: there is no examination.
        DamagedFileError: a file is torn or edited, or the items do not belong to the results.
        ForeignFileError: a newer version wrote it.
    """
    folder = folder.parent if folder.name == RESULTS else folder
    path = folder / RESULTS
    try:
        document = read_sealed(path, "examination", FORMAT, _REMEDY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{path}: not found; give the --out folder of a finished `armillary evaluate`, or finish it first"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        results = tuple(_read(Result, row, f"results[{number}]") for number, row in enumerate(document["results"]))
        items = {task: _read_items(folder / ITEMS / f"{task}.jsonl", seal) for task, seal in document["items"].items()}
        return Examination(results, items, document["model"], document["backend"], document["cost"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path}: the examination has invalid content ({error}); {_REMEDY}") from error


def _read_items(path: Path, seal: str) -> tuple[Item, ...]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(
            f"{path}: cannot be read ({error.strerror}), but {RESULTS} needs it; {_REMEDY}"
        ) from error
    if sha256(data).hexdigest() != seal:
        raise DamagedFileError(
            f"{path}: not the items that {RESULTS} was computed from (truncated or edited); {_REMEDY}"
        )
    # Split only at newlines: ``splitlines`` also splits at U+2028, which JSON does not escape.
    rows = data.decode("utf-8", "surrogatepass").split("\n")[:-1]
    return tuple(_item(json.loads(row), f"{path.name}:{number}") for number, row in enumerate(rows, 1))


def _item(row: dict[str, Any], where: str) -> Item:
    return _read(Item, {**row, "outputs": tuple(row["outputs"])}, where)


_Row = TypeVar("_Row", Item, Result)


def _read(kind: type[_Row], row: dict[str, Any], where: str) -> _Row:
    """``row`` as ``kind``; raises ValueError for a missing or unknown field, or a number that is not finite."""
    names = {f.name: f for f in fields(kind)}
    if wrong := sorted((row.keys() - names) | {n for n, f in names.items() if n not in row and f.default is MISSING}):
        raise ValueError(f"{where}: fields missing or unknown: {', '.join(wrong)}")
    for name, hint in get_type_hints(kind).items():
        number = row.get(name)
        good = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if hint is float and name in row and not good:
            raise ValueError(f"{where}: {name} is {number!r}, not a number")
    return kind(**row)
