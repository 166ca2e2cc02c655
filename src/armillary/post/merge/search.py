"""Finds weights on a validation set, and decides whether to merge at all.

The best single model wins unless a merge is significantly better. The items are split in half: one half chooses the
weights, the other judges the choice by the paired interval. The best of many merges looks better than it is on the
items that chose it.

The search is a pattern search from equal weights. It moves shares between two models (and the scale up and down, for
methods that add differences to the base) by 1/4, then 1/8, then 1/16, as long as the score improves. Every score is
appended to a file next to the output. A resumed search reads them and repeats no merge.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.laws import paired_difference
from armillary.post.merge.merge import merge
from armillary.post.merge.parents import open_parent
from armillary.post.merge.registry import MergeOptions, method_named
from armillary.recipe import DamagedFileError, UsageError, canonical_hash, exclusive, read_sealed, write_sealed

Scores = NDArray[np.float64]

FORMAT = 1
MERGE, DO_NOT = "merge", "do not merge"
LEAST_ITEMS = 8
_STEPS = (1 / 4, 1 / 8, 1 / 16)
_SCALE_STEP = 2.0
_SEARCH, _SCORES = "search.json", "scores.jsonl"


@dataclass(frozen=True)
class Search:
    """Options of a search for weights.

    Attributes:
        score: scores the model in a folder: one number per item [n], higher is better, the same items each time.
        name: identity of the score, such as a hash of its items; a different name is a different search.
        evaluations: maximum number of merges to score, besides the base and the models.
        level: confidence level of the paired interval.
        progress: called with evaluations done, their maximum, and a note.
    """

    score: Callable[[Path], Scores]
    name: str
    evaluations: int = 16
    level: float = 0.95
    progress: Callable[[int, int, str], None] | None = None


@dataclass(frozen=True)
class _Candidate:
    weights: tuple[float, ...]
    scale: float

    @property
    def key(self) -> str:
        return canonical_hash({"weights": [round(w, 6) for w in self.weights], "scale": round(self.scale, 6)})


def search_merge(
    base: Path, models: Sequence[Path], out: Path, options: MergeOptions, search: Search
) -> dict[str, Any]:
    """Find weights, and write the best merge to ``out``, or the best single model if the merge is not better.

    Returns and raises the same as ``find_weights``, and raises as ``merge``.
    """
    found = find_weights(base, models, out, options, search)
    if found["decision"] == MERGE:
        merge(base, models, out, replace(options, weights=tuple(found["weights"]), scale=found["scale"]))
    else:
        merge(base, [Path(found["best_single"])], out, MergeOptions("linear", (1.0,)))
    return found


def find_weights(
    base: Path, models: Sequence[Path], out: Path, options: MergeOptions, search: Search
) -> dict[str, Any]:
    """Find weights, and judge whether the merge beats the best single model; ``out`` is not written.

    ``out.search`` next to ``out`` holds all scores. Its ``search.json`` has the return value: ``decision`` (``merge``
    or ``do not merge``), the ``difference`` between the best merge and the best single model with its interval on the
    judging half of the items, and both candidates.

    Raises:
        UsageError: as ``merge``; a method without weights to search; fewer than 8 items; another search in the folder.
        ArmillaryError: as ``merge``.
    """
    method = method_named(options.method)
    if options.method == "weighted":
        raise UsageError("the weights of 'weighted' are the models' scores; search with 'linear' instead")
    if search.evaluations < 1:
        raise UsageError(f"{search.evaluations} evaluations; give at least 1")
    if len(models) < 2 and not method.adds:
        raise UsageError(f"'{options.method}' of one model has no weights to search; give the base as a second model")
    folder = out.absolute().with_name(f"{out.name}.search")
    with exclusive(folder / ".lock", "searches weights"):
        parents = [open_parent(place) for place in (base, *models)]
        asked = {
            "options": asdict(replace(options, weights=(), scale=1.0)) | {"weights": []},
            "parents": [parent.id for parent in parents],
            "score": search.name,
        }
        known = _Known(folder, asked)
        done = 0

        def scored(place: Path, key: str, note: str) -> Scores:
            found = known.get(key)
            if found is None:
                found = known.add(key, np.asarray(search.score(place), dtype=float))
            if search.progress is not None:
                search.progress(done, search.evaluations, note)
            return found

        single = [scored(place, parent.id, str(place)) for place, parent in zip((base, *models), parents, strict=True)]
        first, second = _halves(len(single[0]))
        best_parent = max(range(len(single)), key=lambda i: float(single[i][first].mean()))

        def judge(candidate: _Candidate) -> float:
            nonlocal done
            done += 1
            place = folder / "candidate"
            if known.get(candidate.key) is None:
                shutil.rmtree(place, ignore_errors=True)
                merge(base, models, place, replace(options, weights=candidate.weights, scale=candidate.scale))
            note = ", ".join(f"{weight:.3f}" for weight in candidate.weights)
            found = float(scored(place, candidate.key, note)[first].mean())
            shutil.rmtree(place, ignore_errors=True)
            return found

        best = _climb(len(models), method.adds, search.evaluations, judge)
        scores = known.get(best.key)
        assert scores is not None
        gap = paired_difference(scores[second], single[best_parent][second], search.level)
        found = {
            "decision": MERGE if gap.low > 0 else DO_NOT,
            "weights": list(best.weights),
            "scale": best.scale,
            "best_single": str((base, *models)[best_parent]),
            "difference": {"value": float(gap.mean), "low": float(gap.low), "high": float(gap.high)},
            "scores": {"merge": float(scores.mean()), "best_single": float(single[best_parent].mean())},
            "evaluations": done,
            "items": len(scores),
        }
        write_sealed(folder / _SEARCH, {"format": FORMAT, "asked": asked, "found": found})
        return found


def _climb(models: int, adds: bool, most: int, judge: Callable[[_Candidate], float]) -> _Candidate:
    """The best candidate of a pattern search with at most ``most`` calls of ``judge``."""
    best = _Candidate((1 / models,) * models, 1.0)
    seen = {best.key}
    top, left = judge(best), most - 1
    for number, step in enumerate(_STEPS):
        moved = True
        while moved and left > 0:
            moved = False
            for candidate in _neighbours(best, step, _SCALE_STEP ** (0.5**number) if adds else 1.0):
                if candidate.key in seen or left <= 0:
                    continue
                seen.add(candidate.key)
                value, left = judge(candidate), left - 1
                if value > top:
                    best, top, moved = candidate, value, True
                    break
    return best


def _neighbours(at: _Candidate, step: float, factor: float) -> Iterator[_Candidate]:
    """Candidates around ``at``: other scales, then ``step`` moved between each pair of models."""
    if factor != 1.0:
        for scale in (at.scale / factor, at.scale * factor):
            yield replace(at, scale=scale)
    for source, weight in enumerate(at.weights):
        for target in range(len(at.weights)):
            if source != target and weight > 1e-9:
                weights = list(at.weights)
                weights[source] -= min(step, weight)
                weights[target] += min(step, weight)
                yield replace(at, weights=tuple(weights))


def _halves(items: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The items that choose and the items that judge, drawn with a fixed seed."""
    if items < LEAST_ITEMS:
        raise UsageError(f"the score has {items} items; choosing and judging needs at least {LEAST_ITEMS}")
    order = np.random.default_rng(0).permutation(items)
    return order[::2], order[1::2]


class _Known:
    """The scores of a search on disk: one JSON line per candidate; a torn last line is cut."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self._path = folder / _SCORES
        remedy = f"remove {folder} and search again"
        try:
            before = read_sealed(folder / _SEARCH, "record of a search", FORMAT, remedy)["asked"]
        except FileNotFoundError:
            write_sealed(folder / _SEARCH, {"format": FORMAT, "asked": asked, "found": None})
        else:
            differing = [name for name in asked if before.get(name) != asked[name]]
            if differing:
                raise UsageError(
                    f"{folder}: contains a search with a different {', '.join(differing)}; remove it, or "
                    "give another --out"
                )
        self._scores: dict[str, Scores] = {}
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self._scores[str(row["key"])] = np.array(row["scores"], dtype=float)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DamagedFileError(f"{self._path}, line {number}: cannot be read ({error}); {remedy}") from error
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))

    def get(self, key: str) -> Scores | None:
        return self._scores.get(key)

    def add(self, key: str, scores: Scores) -> Scores:
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise UsageError(
                f"the score returned shape {scores.shape} or a number that is not finite; return one number per item"
            )
        other = next(iter(self._scores.values()), scores)
        if len(other) != len(scores):
            raise UsageError(f"the score returned {len(scores)} numbers, but {len(other)} before; score the same items")
        with self._path.open("ab") as file:
            file.write((json.dumps({"key": key, "scores": scores.tolist()}) + "\n").encode())
        self._scores[key] = scores
        return scores
