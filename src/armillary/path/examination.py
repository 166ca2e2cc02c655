"""The examination of the published model, and of the same model on the natural mixture, on items of held-out text.

Both models get the same cloze items (``evaluate/cloze.py``), so that the difference is paired. The answers lie in
``examination/published`` and ``examination/natural`` of the workspace, and are used again as long as run and items stay
the same. A folder that is damaged is examined anew.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from armillary.train import load_trained

FOLDER = "examination"
ITEMS_PER_DOMAIN = 40


@dataclass(frozen=True)
class Examined:
    """The answers of the published model and of the same seed on the natural mixture, None where that has none."""

    published: Examination
    natural: Examination | None


def examine(outcome: TargetOutcome, corpus: Corpus, store: Store, folder: Path) -> Examined | None:
    """Examine the published run of ``outcome`` in the workspace ``folder``.

    None where no run is published, or no domain has held-out text for two items.

    Raises:
        ArmillaryError: weights that cannot be read, or a folder that cannot be written.
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
    published = _examined(run, items, corpus, store, folder / FOLDER / "published")
    if other is None or other == run:
        return Examined(published, None)
    return Examined(published, _examined(other, items, corpus, store, folder / FOLDER / "natural"))


def written_files(examined: Examined) -> list[str]:
    """The files that hold the answers, relative to the workspace."""
    arms = ["published", *(["natural"] if examined.natural is not None else [])]
    return [f"{FOLDER}/{arm}/{name}" for arm in arms for name in (RESULTS, f"{ITEMS}/{TASK}.jsonl")]


def score_rows(examined: Examined) -> list[report.ScoreRow]:
    """The rows of the report: the total, then each domain, against the natural mixture where it was examined."""
    rows = examined.published.items[TASK]
    others = None if examined.natural is None else {row.id: row for row in examined.natural.items[TASK]}
    found = []
    for result in examined.published.results:
        mine = [row for row in rows if result.subset in (TASK, row.subset)]
        said = report.ScoreRow(
            "total" if result.subset == TASK else result.subset, result.n, result.value, result.low, result.high
        )
        found.append(said if others is None else _compared(said, mine, [others[row.id] for row in mine]))
    return found


def _compared(row: report.ScoreRow, mine: Sequence[Item], theirs: Sequence[Item]) -> report.ScoreRow:
    clusters = [item.cluster for item in mine]
    first, second = ([item.scores[METRIC] for item in items] for items in (theirs, mine))
    difference = paired(first, second, clusters)
    reference = mean_interval(first, clusters)
    return replace(
        row,
        reference=reference.value,
        reference_low=reference.low,
        reference_high=reference.high,
        difference=difference.difference.value,
        difference_low=difference.difference.low,
        difference_high=difference.difference.high,
        p=difference.p_value,
    )


def _examined(run: str, items: Sequence[ClozeItem], corpus: Corpus, store: Store, folder: Path) -> Examination:
    try:
        known = read_examination(folder)
        if known.model.get("run") == run and [row.id for row in known.items[TASK]] == [item.id for item in items]:
            return known
    except (UsageError, DamagedFileError):  # not there, or not what was written
        pass
    spec = store.run_spec(run)
    model = load_trained(store.run_folder(run), spec)
    text = ModelText(corpus.tokenizer(), frozenset({corpus.manifest.end_of_text_id}))
    backend = NativeBackend(model, text, spec.context_length, lambda: {"model": run})
    try:
        found = examine_cloze(backend, items)
    finally:
        backend.close()
    found = replace(found, model={**found.model, "run": run, "corpus": corpus.hash})
    write_examination(folder, found)
    return found
