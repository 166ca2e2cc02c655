"""Reproductions of published results from their measured data, with our figures beside the published ones.

The data are not part of this package: each result names its file and the source of the file. Files are looked for as
``scaling/chinchilla.csv`` below the given folder, or as ``chinchilla.csv`` in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from armillary.laws.reproduce.anneal import multi_power_law, two_rates
from armillary.laws.reproduce.evaluation import Evaluation, Figure, Forecast
from armillary.laws.reproduce.hyperparameters import step_law
from armillary.laws.reproduce.mixture import regmix
from armillary.laws.reproduce.scaling import chinchilla, data_constrained, gemstones, isoflop, ladder
from armillary.recipe import UsageError

__all__ = ["REPRODUCTIONS", "Evaluation", "Figure", "Forecast", "coverage_table", "figure_table", "reproduce"]

VARIABLE = "ARMILLARY_PUBLISHED"


@dataclass(frozen=True)
class _Reproduction:
    run: Callable[[Path], Evaluation]
    needs: str
    origin: str


_OF = {
    "regmix": _Reproduction(regmix, "mixture/regmix", "github.com/sail-sg/regmix"),
    "chinchilla": _Reproduction(chinchilla, "scaling/chinchilla.csv", "github.com/epoch-research/analyzing-chinchilla"),
    "ladder": _Reproduction(ladder, "scaling/olmo_ladder.csv", "github.com/allenai/OLMo-ladder"),
    "multi-power-law": _Reproduction(
        multi_power_law, "anneal/multi_power_law", "github.com/thu-yao-01-luo/MultiPowerLaw"
    ),
    "two-rates": _Reproduction(two_rates, "anneal/openwebtext2", "github.com/fabian-sp/lr-scheduling"),
    "step-law": _Reproduction(step_law, "scaling/step_law_small.csv", "github.com/step-law/steplaw"),
    "gemstones": _Reproduction(gemstones, "scaling/gemstones_small.csv", "github.com/mcleish7/gemstone-scaling-laws"),
    "isoflop": _Reproduction(
        isoflop, "scaling/isoflop_refinedweb.csv", "github.com/formll/resolving-scaling-law-discrepancies"
    ),
    "data-constrained": _Reproduction(
        data_constrained, "scaling/data_constrained_small.csv", "github.com/huggingface/datablations"
    ),
}
REPRODUCTIONS = tuple(_OF)


def reproduce(name: str, folder: Path | None = None) -> Evaluation:
    """Reproduce a published result.

    Args:
        name: one of ``REPRODUCTIONS``.
        folder: with the measured data; by default the value of the environment variable ``ARMILLARY_PUBLISHED``.

    Raises:
        UsageError: an unknown name, no folder, or a folder without the data.
    """
    if name not in _OF:
        raise UsageError(f"no published result '{name}'; choose one of {', '.join(_OF)}")
    wanted = _OF[name]
    remedy = f"the data are published at {wanted.origin}; put them in a folder as {wanted.needs}, and give that folder"
    if folder is None:
        if not os.environ.get(VARIABLE):
            raise UsageError(f"{name}: no folder of published data; give --data or set {VARIABLE} ({remedy})")
        folder = Path(os.environ[VARIABLE])
    # The data may be directly in the folder or in a subfolder.
    depth = len(Path(wanted.needs).parts)
    for root in (folder, *list(folder.resolve().parents)[:depth]):
        if (root / wanted.needs).exists():
            return wanted.run(root)
    raise UsageError(f"{name}: {folder / wanted.needs} is missing; {remedy}")


def figure_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: our figure, the published or a peer's, the trivial rule's, and the goal."""
    rows = []
    for evaluation in evaluations:
        for f in evaluation.figures:
            ours, published, trivial, goal = (
                "" if value is None else f"{value:.4g}" for value in (f.ours, f.published, f.trivial, f.goal)
            )
            if f.low is not None and f.high is not None and f.low < f.high:
                ours += f" ({f.low:.4g} to {f.high:.4g})"
            measure = f"{f.measure} [{f.unit}]" if f.unit else f.measure
            rows.append([evaluation.name, measure, ours, published, trivial, goal, f.note])
    return ["result", "measure", "ours", "published or peer", "trivial", "goal", "note"], rows


def coverage_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: coverage and width of the 90 % intervals for held-out measurements."""
    rows = []
    forecasts = {e.name: e.forecasts for e in evaluations if e.forecasts}
    everything = [f for group in forecasts.values() for f in group]
    for name, group in [*forecasts.items(), ("all", everything)] if forecasts else []:
        n = len(group)
        rows.append(
            [
                name,
                str(n),
                str(len({f.group for f in group})),
                f"{sum(f.inside for f in group)} ({sum(f.inside for f in group) / n:.0%})",
                f"{100 * sum(abs(f.predicted / f.measured - 1) for f in group) / n:.2f} %",
                f"{100 * sum((f.high - f.low) / f.measured for f in group) / n:.2f} %",
                f"{min(f.extrapolation for f in group):.3g} to {max(f.extrapolation for f in group):.3g}",
            ]
        )
    return ["family", "forecasts", "groups", "inside", "mean error", "mean width", "extrapolation"], rows
