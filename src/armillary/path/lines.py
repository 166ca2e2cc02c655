"""One line of text per stage with its result, in nats per token, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from armillary.path.taught import Taught
from armillary.path.teach import BASE, HELD_OUT
from armillary.recipe import counted
from armillary.report import ScoreRow, compared_row
from armillary.study import AnnealOutcome, LadderOutcome, LrOutcome, MixtureOutcome, TargetOutcome


def mixture(found: MixtureOutcome) -> str:
    """The chosen mixture, and the best candidate compared with the reference."""
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in found.found.items())
    if found.reason:
        return f"mixture: {found.taken} ({weights}); {found.reason}"
    return f"mixture: {found.taken} ({weights}); best candidate minus {found.reference} {_between(found)}"


def anneal(found: AnnealOutcome) -> str:
    """The chosen annealing, and the best one compared with the reference."""
    if found.reason:
        return f"anneal: {found.taken.name}; {found.reason}"
    return f"anneal: {found.taken.name}; {found.best} minus {found.reference} {_between(found)}"


def lr(found: LrOutcome) -> str:
    """The target's peak learning rate beside the rule's, and the comparison with new seeds."""
    at = found.target
    rates = "" if at is None else f" (target: tuned {at.lr:.3g}, rule {at.rule:.3g})"
    return f"lr: {found.taken}{rates}; " + (found.reason or f"tuned minus rule {_between(found)}")


def ladder(found: LadderOutcome) -> str:
    """The range of the ladder's sizes and target losses."""
    sizes, losses = [point.parameters for point in found.points], [point.target for point in found.points]
    return (
        f"ladder: {counted(len(found.points), 'run')} of {min(sizes):,} to {max(sizes):,} parameters; target loss "
        f"{max(losses):.4f} to {min(losses):.4f}"
    )


def prediction(recorded: dict[str, Any]) -> str:
    """The recorded prediction of the target loss with its interval, or the reason why there is none."""
    if recorded["target"] is None:
        return f"predict: {recorded['unpredicted']}"
    target = recorded["target"]
    return f"predict: target loss {target['predicted']:.4f} ({target['low']:.4f} to {target['high']:.4f})"


def target(found: TargetOutcome) -> str:
    """The mean target loss of each arm, and the differences with their intervals."""
    means = ", ".join(f"{arm.name} {arm.mean:.4f} ({counted(len(arm.seeds), 'seed')})" for arm in found.arms)
    apart = "".join(
        f"; found minus {each.reference} {each.mean:+.4f} ({each.low:+.4f} to {each.high:+.4f})"
        for each in found.differences
    )
    return f"target: {means}{apart}"


def verdict(judged: dict[str, Any]) -> str:
    """The number of predictions inside their intervals, or the reason why there is no verdict."""
    if judged["status"] == "judged":
        return f"verdict: {judged['inside']} of {counted(len(judged['rows']), 'prediction')} inside their intervals"
    if judged["status"] == "diverged":
        return f"verdict: diverged: outside ({judged['reason']})"
    return f"verdict: {judged['reason']}"


def examination(rows: Sequence[ScoreRow]) -> str:
    """The accuracy of the published model, and the difference from the natural mixture.

    The difference is on the target if the rows have one, else on all items.
    """
    total = rows[0]
    interval = f"{100 * total.low:.1f} to {100 * total.high:.1f}"
    line = f"examine: {100 * total.value:.1f}% of {counted(total.n, 'item')} right ({interval})"
    row = compared_row(rows)
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return line
    where = "" if row is total else " on the target's domains"
    ends = f"{100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f}"
    return f"{line}; against the natural mixture{where} {100 * row.difference:+.1f} points ({ends}), p = {row.p:.2g}"


def lesson(found: Taught) -> str:
    """Accuracy before and after the lesson, and the prediction."""
    rows = {row.model: row for row in found.part.scores if row.test == HELD_OUT and row.subset is None}
    after = rows[found.kept] if found.published else rows["sft"]
    line = f"lesson: {rows[BASE].value:.1%} of {after.n} held-out questions right before, {after.value:.1%} after"
    if after.difference is not None and after.difference_low is not None and after.difference_high is not None:
        ends = f"{100 * after.difference_low:+.1f} to {100 * after.difference_high:+.1f}"
        line += f" ({100 * after.difference:+.1f} points, {ends})"
    gain = found.part.gain
    if gain is not None and gain.predicted is not None:
        word = "inside" if gain.inside else "outside"
        line += f"; predicted {gain.predicted:.1%} ({gain.low:.1%} to {gain.high:.1%}): {word}"
    return line


def _between(found: MixtureOutcome | AnnealOutcome | LrOutcome) -> str:
    word = "significant" if found.significant else "not significant"
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), {word}"
