"""A ranking of models that separates only what differs significantly on the same items.

There is one table per task and metric. All models of a table are compared in pairs on the items that all of them
answered, by the clustered test of ``paired``. The p-values are corrected for the number of pairs in the table (Holm
1979). The rank of a model is 1 plus the number of significantly better models, so models that nothing separates share
a rank. This order is not transitive: the first model may beat the third while neither differs from the second.

Two examinations with different prompts, few-shot examples, extractors or generation settings measure different things.
They are refused unless the caller asks for the comparison; the table then carries a note. Tables are not corrected for
each other: with twenty tasks at a level of 95 %, one false separation is likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from armillary.evaluate.intervals import Interval, mean_interval
from armillary.evaluate.paired import Paired, holm, paired
from armillary.evaluate.results import RESULTS, Examination, Item, named_model, read_examination
from armillary.recipe import UsageError

# Substrings that mark metrics where lower is better.
_COSTS = ("perplexity", "loss", "bits_per_byte", "error_rate")
_DEEPEST = 3


@dataclass(frozen=True)
class Standing:
    """One model in a table.

    Attributes:
        rank: 1 plus the number of models that are significantly better.
        score: mean over the common items, with its interval.
        better_than: models that are significantly worse.
    """

    model: str
    rank: int
    score: Interval
    better_than: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two models of a table; the comparison is second minus first."""

    first: str
    second: str
    compared: Paired
    p_adjusted: float
    significant: bool


@dataclass(frozen=True)
class Table:
    """The ranking of one metric of one task.

    Attributes:
        items: number of items that all models answered; all scores are over these.
        standings: best rank first, then by score.
        notes: caveats for the reader, such as items that some models lack.
    """

    task: str
    metric: str
    items: int
    clusters: int
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Leaderboard:
    """All tables, and the tasks that could not be ranked.

    Attributes:
        level: confidence level of the intervals and of each table's ranking.
        notes: tasks that only one model took.
    """

    level: float
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def read_results(places: Sequence[Path]) -> dict[str, Examination]:
    """The examinations in ``places``, keyed by the name of their model.

    A place is the folder of an examination, its ``results.json``, or a folder of such folders. Models with the same
    name are distinguished by their folders.

    Raises:
        UsageError: a place holds no examination, or one is given twice.
        DamagedFileError: an examination is torn or edited.
    """
    folders: list[Path] = []
    for place in places:
        found = _folders(place)
        if not found:
            raise UsageError(f"{place}: no {RESULTS} here or below; give the --out folders of `armillary evaluate`")
        folders += found
    if len({folder.resolve() for folder in folders}) < len(folders):
        twice = next(folder for folder in folders if sum(folder.resolve() == other.resolve() for other in folders) > 1)
        raise UsageError(f"{twice} is given twice; a model cannot be compared with itself")
    examinations = [(folder, read_examination(folder)) for folder in folders]
    names = [str(named_model(examination.model).get("model") or folder.name) for folder, examination in examinations]
    return {
        name if names.count(name) == 1 else f"{name} ({folder})": examination
        for name, (folder, examination) in zip(names, examinations, strict=True)
    }


def _folders(place: Path) -> list[Path]:
    if place.name == RESULTS or (place / RESULTS).exists():
        return [place.parent if place.name == RESULTS else place]
    patterns = ["/".join(["*"] * depth) + f"/{RESULTS}" for depth in range(1, _DEEPEST + 1)]
    return sorted(path.parent for pattern in patterns for path in place.glob(pattern))


def rank(examinations: Mapping[str, Examination], level: float = 0.95, across_settings: bool = False) -> Leaderboard:
    """Rank models on every task and metric that at least two of them have.

    Args:
        examinations: by the name of the model.
        level: of the intervals, and 1 minus the chance of any false separation within a table.
        across_settings: whether to compare results with different prompts or extractors.

    Raises:
        UsageError: fewer than two models, no task in common, no item in common, or different settings.
    """
    if len(examinations) < 2:
        raise UsageError(f"{len(examinations)} examination given; a ranking needs at least two")
    tasks = dict.fromkeys(task for examination in examinations.values() for task in examination.items)
    tables: list[Table] = []
    notes: list[str] = []
    for task in tasks:
        takers = {name: one.items[task] for name, one in examinations.items() if one.items.get(task)}
        if len(takers) < 2:
            notes.append(f"{task}: only {', '.join(takers) or 'no model'} took it; nothing to compare")
            continue
        if absent := [name for name in examinations if name not in takers]:
            notes.append(f"{task}: not taken by {', '.join(absent)}")
        metrics = dict.fromkeys(metric for items in takers.values() for item in items for metric in item.scores)
        tables += [_table(task, metric, takers, level, across_settings) for metric in metrics]
    if not tables:
        raise UsageError(f"no two models took the same task: {'; '.join(notes)}")
    return Leaderboard(level, tuple(tables), tuple(notes))


def _table(task: str, metric: str, takers: Mapping[str, Sequence[Item]], level: float, across_settings: bool) -> Table:
    rows = {name: {(i.subset, i.id): i for i in items if metric in i.scores} for name, items in takers.items()}
    lacking = [name for name, items in rows.items() if not items]
    if lacking:
        raise UsageError(f"{task}: {', '.join(lacking)} has no {metric}; examine it again with the same version")
    everything = dict.fromkeys(key for items in rows.values() for key in items)
    common = [key for key in everything if all(key in items for items in rows.values())]
    if not common:
        counts = ", ".join(f"{name} {len(items)}" for name, items in rows.items())
        raise UsageError(f"{task}: the models have no item in common ({counts} items); examine them on the same data")
    notes = []
    if len(common) < len(everything):
        counts = ", ".join(f"{name} {len(items)}" for name, items in rows.items())
        notes.append(f"compared on the {len(common)} items that all models answered, of {len(everything)} ({counts})")
    if note := _settings(task, rows, common, across_settings):
        notes.append(note)
    some = next(iter(rows.values()))
    clusters = [f"{some[key].subset}/{some[key].cluster}" for key in common]
    scores = {name: np.array([float(items[key].scores[metric]) for key in common]) for name, items in rows.items()}
    return _ranked(Table(task, metric, len(common), len(set(clusters)), (), (), tuple(notes)), scores, clusters, level)


def _settings(
    task: str,
    rows: Mapping[str, Mapping[tuple[str, str], Item]],
    common: Sequence[tuple[str, str]],
    across_settings: bool,
) -> str | None:
    """The note on different settings; None if all are equal."""
    differ = [key for key in common if len({items[key].settings for items in rows.values()}) > 1]
    if not differ:
        return None
    hashes = ", ".join(f"{name} {items[differ[0]].settings[:12]}" for name, items in rows.items())
    finding = f"{len(differ)} of {len(common)} items have different settings ({hashes})"
    if not across_settings:
        raise UsageError(
            f"{task}: {finding}: prompt template, few-shot examples, extractor or generation differ, so the scores "
            "measure different things. Examine the models with equal settings, or pass --across-settings"
        )
    return f"{finding}: a difference may come from the prompt, the extractor or the generation"


def _ranked(table: Table, scores: Mapping[str, np.ndarray], clusters: Sequence[str], level: float) -> Table:
    """``table`` with standings and pairs."""
    sign = -1.0 if any(part in table.metric for part in _COSTS) else 1.0
    several = clusters if len(set(clusters)) < len(clusters) else None
    values = np.concatenate(list(scores.values()))
    bounds = (min(0.0, float(values.min())), max(1.0, float(values.max())))
    couples = list(combinations(scores, 2))
    compared = [paired(scores[first], scores[second], several, level) for first, second in couples]
    adjusted = holm([one.p_value for one in compared])
    pairs = tuple(
        Pair(first, second, one, p, p < 1 - level)
        for (first, second), one, p in zip(couples, compared, adjusted, strict=True)
    )
    beats: dict[str, list[str]] = {name: [] for name in scores}
    for pair in pairs:
        if pair.significant:
            ahead = pair.compared.difference.value * sign > 0
            beats[pair.second if ahead else pair.first].append(pair.first if ahead else pair.second)
    standings = [
        Standing(
            name,
            1 + sum(name in worse for worse in beats.values()),
            mean_interval(values, several, level, bounds),
            tuple(beats[name]),
        )
        for name, values in scores.items()
    ]
    standings.sort(key=lambda one: (one.rank, -sign * one.score.value, one.model))
    return Table(table.task, table.metric, table.items, table.clusters, tuple(standings), pairs, table.notes)
