"""The same questions in other formats, to show how far a score depends on the prompt's format.

The wording does not change. Variants change details that should not matter: the space at a label, a newline after it,
its case, and the mark of a choice (Sclar et al. 2024, "Quantifying language models' sensitivity to spurious features in
prompt design", arXiv 2310.11324). Variant 0 is lm_eval's prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from armillary.evaluate.intervals import mean_interval
from armillary.evaluate.results import Examination, Item, Result
from armillary.recipe import UsageError, canonical_hash

_LABEL = re.compile(r"^(Question|Answer|Problem|Solution|Q|A|答案)([:：])", re.MULTILINE)
_CHOICE = re.compile(r"^([A-D])\. ", re.MULTILINE)

# For each variant, the format of a label (with its colon) and of a choice's mark.
_FORMATS: tuple[tuple[Callable[[re.Match[str]], str], str], ...] = (
    (lambda label: label[0], r"\1. "),
    (lambda label: f"{label[1]} {label[2]}", r"\1) "),
    (lambda label: f"{label[0]}\n", r"(\1) "),
    (lambda label: f"{label[1].lower()}{label[2]}", r"\1: "),
)
MOST = len(_FORMATS)


def vary(task: Any, variant: int) -> None:
    """Apply format number ``variant`` (1 or more) to the prompts of lm_eval's task object.

    Raises:
        UsageError: the prompts have neither a label nor a choice to vary.
    """
    label, choice = _FORMATS[variant]
    original = task.doc_to_text

    def doc_to_text(doc: Mapping[str, Any], template: Any = None) -> str:
        return _CHOICE.sub(choice, _LABEL.sub(label, original(doc, template)))

    first = next(iter(task.eval_docs))
    if doc_to_text(first) == original(first):
        raise UsageError(f"{task.task_name}: its prompts have no label and no choices, so there is no format to vary")
    task.doc_to_text = doc_to_text


def over_variants(held: Sequence[Examination]) -> Examination:
    """Merge the examinations of all variants: scores are means over variants, intervals cover items and variants.

    Items keep the outputs of all variants, in order. Answers and disagreement are those of variant 0.
    """
    items = {
        task: tuple(_over([examination.items[task][place] for examination in held]) for place in range(len(rows)))
        for task, rows in held[0].items.items()
    }
    results = [
        _result([examination.results[place] for examination in held], held) for place in range(len(held[0].results))
    ]
    return replace(held[-1], results=tuple(results), items=items)


def _over(rows: Sequence[Item]) -> Item:
    return replace(
        rows[0],
        settings=canonical_hash({"variants": [row.settings for row in rows]}),
        outputs=tuple(output for row in rows for output in row.outputs),
        scores={metric: sum(row.scores[metric] for row in rows) / len(rows) for metric in rows[0].scores},
        truncated=any(row.truncated for row in rows),
        context_cut=max(row.context_cut for row in rows),
    )


def _result(parts: Sequence[Result], held: Sequence[Examination]) -> Result:
    first = parts[0]
    of_variant = [
        [item for item in examination.items[first.task] if first.subset in (first.task, item.subset)]
        for examination in held
    ]
    table = list(zip(*([item.scores[first.metric] for item in rows] for rows in of_variant), strict=True))
    interval = mean_interval(table, [item.cluster for item in of_variant[0]])
    return replace(
        first,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        truncated=sum(part.truncated for part in parts) / len(parts),
        context_cut=sum(part.context_cut for part in parts) / len(parts),
        settings=canonical_hash({"variants": [part.settings for part in parts]}),
    )
