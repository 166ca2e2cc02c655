"""Prints the results of an examination."""

from __future__ import annotations

from typing import Any

from armillary.cli.show.screen import show_table


def show_results(title: str, examination: Any) -> None:
    """The table of scores."""
    cut = any(r.context_cut for r in examination.results)
    show_table(
        title,
        ["task", "subset", "metric", "value", "low", "high", "n", "truncated", "disagreement"]
        + (["context cut"] if cut else []),
        [
            [r.task, r.subset, r.metric, r.value, r.low, r.high, r.n, r.truncated, r.extraction_disagreement]
            + ([r.context_cut] if cut else [])
            for r in examination.results
        ],
    )


def show_clean(examination: Any) -> None:
    """Print the number of items in the training text, and the scores of the others."""
    from armillary.evaluate.tasks import clean_scores

    show_table(
        "items that occur in the training text",
        ["task", "metric", "items", "contaminated", "too short to judge", "score of all", "score without them"],
        [
            [one.task, one.metric, one.items, one.contaminated, one.not_judged, one.value, one.clean]
            for one in clean_scores(examination)
        ],
    )
