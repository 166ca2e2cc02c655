"""Examines the published model, and the same model on the natural mixture, on items from held-out text.

Both models get the same cloze items (``evaluate/cloze.py``), so the difference is paired. The answers are kept in
``examination/published`` and ``examination/natural`` of the workspace, and are reused while run and items stay the
same.
A damaged folder is examined again. The scores are also recorded once in the workspace's store.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from armillary import report
from armillary.corpus import Corpus
from armillary.evaluate import Examination, Item, mean_interval, read_examination, write_examination
from armillary.evaluate.cloze import METRIC, TASK, ClozeItem, cloze_items, examine_cloze
from armillary.evaluate.paired import paired
from armillary.evaluate.results import ITEMS, RESULTS
from armillary.generate import ModelText
from armillary.generate.native import NativeBackend
from armillary.recipe import DamagedFileError, UsageError
from armillary.store import Store
from armillary.study import TargetOutcome
from armillary.study.examined import record_examination
from armillary.train import load_trained

FOLDER = "examination"
ITEMS_PER_DOMAIN = 40


@dataclass(frozen=True)
class Examined:
    """The answers of the published model, and of the same seed on the natural mixture (None if that has no run)."""

    published: Examination
    natural: Examination | None


def examine(outcome: TargetOutcome, corpus: Corpus, store: Store, folder: Path) -> Examined | None:
    """Examine the published run of ``outcome`` in the workspace ``folder``.

    None if no run is published, or no domain has held-out text for two items.

    Raises:
        ArmillaryError: the weights cannot be read, or the folder cannot be written.
    """
    run = outcome.published
    if run is None:
        return None
    spec = store.run_spec(run)
    items = cloze_items(corpus, ITEMS_PER_DOMAIN, spec.context_length)
    if not items:
        return None
    natural = outcome.arm("natural")
    other = None if natural is None else natural.run(spec.seed)
    places = {"published": run} if other is None or other == run else {"published": run, "natural": other}
    found = {}
    for arm, examined in places.items():
        place = folder / FOLDER / arm
        found[arm] = _examined(examined, items, corpus, store, place)
        record_examination(store, place)
    return Examined(found["published"], found.get("natural"))


def written_files(examined: Examined) -> list[str]:
    """The files that hold the answers, relative to the workspace."""
    arms = ["published", *(["natural"] if examined.natural is not None else [])]
    return [f"{FOLDER}/{arm}/{name}" for arm in arms for name in (RESULTS, f"{ITEMS}/{TASK}.jsonl")]


def score_rows(examined: Examined, target: Mapping[str, float]) -> list[report.ScoreRow]:
    """The rows of the report, compared with the natural mixture if that was examined.

    The first row is the ``total`` over all items. The second is the ``target``: its domains with the recipe's weights,
    as in the target loss. It is left out if one of them has no items, or if it would repeat the total. The others are
    the domains.
    """
    rows = examined.published.items[TASK]
    counts = Counter(row.subset for row in rows)
    parts = {"total": dict.fromkeys(counts, 1.0)}
    if target.keys() <= counts.keys():
        # The weight of one item; its mean over the items of the target is 1.
        items = sum(counts[domain] for domain in target)
        weights = {domain: weight * items / counts[domain] for domain, weight in target.items()}
        if weights.keys() != counts.keys() or not all(math.isclose(weight, 1) for weight in weights.values()):
            parts["target"] = weights
    return [_row(name, examined, weights) for name, weights in [*parts.items(), *((d, {d: 1.0}) for d in counts)]]


def _row(name: str, examined: Examined, weights: Mapping[str, float]) -> report.ScoreRow:
    """Scores over the domains in ``weights``; each of their items counts with that weight."""
    rows = [row for row in examined.published.items[TASK] if row.subset in weights]
    clusters, bounds = [row.cluster for row in rows], (0.0, max(weights.values()))

    def scores(items: Iterable[Item]) -> list[float]:
        return [weights[item.subset] * item.scores[METRIC] for item in items]

    mine = mean_interval(scores(rows), clusters, bounds=bounds)
    row = report.ScoreRow(name, len(rows), mine.value, mine.low, min(mine.high, 1.0))
    if examined.natural is None:
        return row
    others = {item.id: item for item in examined.natural.items[TASK]}
    theirs = scores(others[item.id] for item in rows)
    reference, compared = mean_interval(theirs, clusters, bounds=bounds), paired(theirs, scores(rows), clusters)
    return replace(
        row,
        reference=reference.value,
        reference_low=reference.low,
        reference_high=min(reference.high, 1.0),
        difference=compared.difference.value,
        difference_low=compared.difference.low,
        difference_high=compared.difference.high,
        p=compared.p_value,
    )


def _examined(run: str, items: Sequence[ClozeItem], corpus: Corpus, store: Store, folder: Path) -> Examination:
    try:
        known = read_examination(folder)
        if known.model.get("run") == run and [row.id for row in known.items[TASK]] == [item.id for item in items]:
            return known
    except (UsageError, DamagedFileError):  # missing or changed
        pass
    spec = store.run_spec(run)
    model = load_trained(store.run_folder(run), spec)
    text = ModelText(corpus.tokenizer(), frozenset({corpus.manifest.end_of_text_id}))
    backend = NativeBackend(model, text, spec.context_length, lambda: {"model": f"{folder.name} (run {run})"})
    try:
        found = examine_cloze(backend, items)
    finally:
        backend.close()
    found = replace(found, model={**found.model, "run": run, "corpus": corpus.hash})
    write_examination(folder, found)
    return found
