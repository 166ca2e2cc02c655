"""Examinations: a ranking by significant differences, the items, and two models compared item by item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armillary.console.app import Page, missing
from armillary.console.curves import Cache, state_of
from armillary.console.places import Place
from armillary.recipe import ArmillaryError, UsageError
from armillary.report import format as fmt
from armillary.store import EXAMINATION

_LEVEL = 0.95
_ITEMS = 50
_LONG = 2000  # characters of an output
_NUMBER = re.compile(r"-?\d{1,9}\.\d+")
_RECORDED = 60
_CACHE = Cache(256)


def examinations(page: Page) -> dict[str, Any]:
    """The leaderboard of all examinations, the paired comparison of two, and recorded scores."""
    found = _found(page)
    read: dict[str, Any] = {}
    for key, folder in found.items():
        try:
            read[key] = _examination(folder)
        except (ArmillaryError, OSError) as error:
            page.problems.append(str(error))
    names = _names(read, found)
    pair = [key for key in dict.fromkeys(page.all("with")) if key in read][:2]
    recorded: list[tuple[Place, Any, Any]] = []

    def outcomes(place: Place) -> None:
        for one in place.reader.outcomes(EXAMINATION)[:_RECORDED] if place.reader is not None else ():
            assert place.reader is not None
            recorded.append((place, one, place.reader.outcome(EXAMINATION, one.key)))

    list(page.watch.each(outcomes, page.problems))
    compared, why_not = _compared(read, pair)
    return {
        "names": names,
        "results": {key: [r for r in one.results if r.subset == r.task] for key, one in read.items()},
        "contamination": {key: _contamination(page, one) for key, one in read.items()},
        "board": _board(read, names),
        "pair": pair,
        "compared": compared,
        "why_not": why_not,
        "level": fmt.share(_LEVEL),
        "recorded": [row for row in recorded if isinstance(row[2], dict)],
    }


def items(page: Page) -> dict[str, Any]:
    """The items of one examination, filtered and in pages."""
    found = _found(page)
    key = page.request.path_params["examination"]
    if key not in found:
        raise missing()
    one = _examination(found[key])
    tasks = [task for task, rows in one.items.items() if rows]
    task = page.get("task") if page.get("task") in tasks else next(iter(tasks), "")
    rows = list(one.items.get(task, ()))
    subsets = sorted({row.subset for row in rows})
    only, subset, text = page.get("only"), page.get("subset"), page.get("q")
    if subset:
        rows = [row for row in rows if row.subset == subset]
    if only in ("wrong", "right"):
        rows = [row for row in rows if (_score(row) >= 1) == (only == "right")]
    elif only == "contaminated":
        rows = [row for row in rows if row.contaminated]
    if page.get("ids"):
        wanted = set(page.get("ids").split("."))
        rows = [row for row in rows if row.id in wanted]
    if text:
        rows = [
            row
            for row in rows
            if text in row.id or any(text in str(part) for part in (row.gold, row.answer, *row.outputs))
        ]
    at = page.get("from")
    first = min(int(at), len(rows)) if at.isascii() and at.isdigit() and len(at) < 9 else 0
    shown = rows[first : first + _ITEMS]
    return {
        "examination": one,
        "name": _names({key: one}, found)[key],
        "tasks": tasks,
        "task": task,
        "subsets": subsets,
        "rows": [(row, _shown(row.outputs), _overlap(row)) for row in shown],
        "count": len(rows),
        "first": first,
        "next": page.link(**{"from": first + _ITEMS}) if first + _ITEMS < len(rows) else None,
        "previous": page.link(**{"from": max(0, first - _ITEMS)}) if first else None,
    }


def _shown(outputs: Sequence[str]) -> list[str]:
    """Outputs as they are shown: log-likelihoods of several choices with six digits, texts up to their limit."""
    if len(outputs) > 1 and all(_NUMBER.fullmatch(output) for output in outputs):
        return [f"{float(output):.6g}" for output in outputs]
    return [output[:_LONG] for output in outputs]


def _found(page: Page) -> dict[str, Path]:
    return {key: folder for place in page.watch.places for key, folder in place.found.examinations.items()}


def _examination(folder: Path) -> Any:
    from armillary.evaluate.results import read_examination

    states = tuple(state_of(path) for path in (folder / "results.json", *sorted((folder / "items").glob("*.jsonl"))))
    return _CACHE.get(("read", folder, states), lambda: read_examination(folder))


def _names(read: Mapping[str, Any], found: Mapping[str, Path]) -> dict[str, str]:
    """The label of each model: its name, with the folder if two models have the same name."""
    own = {key: str(one.model.get("model") or found[key].name) for key, one in read.items()}
    every = list(own.values())
    return {
        key: name if every.count(name) == 1 else f"{name} ({found[key].parent.name}/{found[key].name})"
        for key, name in own.items()
    }


def _board(read: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The ranking; ``why`` receives the reasons for models that could not be ranked."""
    from armillary.evaluate.leaderboard import rank

    if len(read) < 2:
        return {"tables": (), "notes": ()}
    key = ("board", tuple((name, id(one)) for name, one in read.items()))
    try:
        board = _CACHE.get(key, lambda: rank({names[key]: one for key, one in read.items()}, _LEVEL, True))
    except UsageError as error:
        return {"tables": (), "notes": (str(error),)}
    return {"tables": board.tables, "notes": board.notes}


def _compared(read: Mapping[str, Any], pair: list[str]) -> tuple[list[Any], str]:
    """The paired comparison of two examinations, or the reason for its absence."""
    if len(pair) < 2:
        return [], ""
    from armillary.evaluate.compare import compare

    first, second = (read[key] for key in pair)
    try:
        return _CACHE.get(("pair", id(first), id(second)), lambda: compare(first, second, any_settings=True)), ""
    except UsageError as error:
        return [], str(error)


def _score(row: Any) -> float:
    return float(next(iter(row.scores.values()), 0.0))


def _overlap(row: Any) -> str:
    if not row.contaminated:
        return ""
    return ", ".join(f"{name} {value}" for name, value in row.contaminated.items())[:300]


def _contamination(page: Page, one: Any) -> str:
    rows = [row for items in one.items.values() for row in items]
    if all(row.contaminated is None for row in rows):
        return page.words("contamination_unknown")
    return page.words("contaminated_items", n=sum(bool(row.contaminated) for row in rows), all=len(rows))
