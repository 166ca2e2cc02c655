"""Decisions based on law files, as plain values: the best mixture, schedule, learning rate, family and next run.

Every answer is a mapping of plain values with its uncertainty, which the command line prints or writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from armillary.files import write_file
from armillary.laws import workbench
from armillary.laws.anneal.curves import read_curve
from armillary.laws.anneal.schedules import best_schedule
from armillary.laws.columns import default_columns, find_column, known_features
from armillary.laws.estimator import Prediction, SetAsideWarning, rows_named
from armillary.laws.files import LawFile, read_law
from armillary.laws.mixture.optimise import Optimum, epoch_ceilings, optimise_mixture
from armillary.laws.scaling.compare import compare_families
from armillary.laws.scaling.next_run import next_runs
from armillary.laws.table import parse_size, read_table
from armillary.recipe import MixtureLimits, MixtureTarget, UsageError, load_document


def optimise(
    path: Path, target: Path, limits: Path | None, size: str | None, candidates: int, tokens: str | None = None
) -> dict[str, Any]:
    """The best mixtures for a target under limits, as the mapping that is written as YAML.

    Args:
        path: file of a mixture law.
        target: YAML of a ``MixtureTarget``.
        limits: YAML of a ``MixtureLimits``.
        size: of the models for the mixture, if the law has sizes. candidates: the number of distinct mixtures to
        return. tokens: for the training of these models, if the law has tokens.

    Raises:
        UsageError: names that the law does not know, or limits without a mixture.
    """
    law = _law(path, "mixture", "armillary fit mixture")
    goal = load_document(target, MixtureTarget).weights
    given = MixtureLimits() if limits is None else load_document(limits, MixtureLimits)
    _known(target, "weights", goal, law.targets, "validation domain")
    for field in ("floors", "ceilings", "domain_tokens", "natural"):
        _known(limits or target, field, getattr(given, field), law.features, "training domain")
    lower = np.array([given.floors.get(name, 0.0) for name in law.features])
    upper = np.array([given.ceilings.get(name, 1.0) for name in law.features])
    available = np.array([given.domain_tokens.get(name, np.inf) for name in law.features])
    if given.budget_tokens is not None:
        upper = np.minimum(upper, epoch_ceilings(available, given.budget_tokens, given.max_epochs))
    natural = given.natural or (given.domain_tokens if np.isfinite(available).all() else {})
    references = {"uniform": np.full(len(lower), 1 / len(lower))}
    if natural:
        shares = np.array([natural.get(name, 0.0) for name in law.features])
        references = {"natural": shares / shares.sum(), **references}
    total = sum(goal.values())
    for_size, for_tokens = (None if text is None else parse_size(text) for text in (size, tokens))
    level = bool(law.law.level_known(for_size, for_tokens).all())
    optima = optimise_mixture(
        law.law,
        [goal.get(name, 0.0) / total for name in law.targets],
        upper=upper,
        lower=lower,
        support=law.law.mixtures_,
        references=references,
        candidates=candidates,
        seed=law.law.seed,
        size=for_size,
        tokens=for_tokens,
    )
    best, *others = optima
    return {
        **_described(best, law.features),
        "others": [
            {key: value for key, value in _described(other, law.features).items() if key != "flat"} for other in others
        ],
        "level_known": level,
        "note": "A law's word only: train these beside the natural mixture with new seeds before you believe it.",
    }


def schedule(
    path: Path,
    size: str,
    steps: int,
    given: Path | None = None,
    peak_lr: float | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """The best learning-rate schedule of ``steps`` for a model of ``size``, and the cost of other lengths.

    Args:
        path: file of an annealing law.
        size: as in ``parse_size``.
        steps: in all, with the warm-up.
        given: a measured curve ``step,lr,loss`` at that size.
        peak_lr: highest rate; by default that of the known curves of this size, or the best of several between
            their lowest and highest.
        out: table ``step,lr`` to write the schedule to, from the end of the warm-up on.

    Raises:
        UsageError: a law of another kind, a bad curve, a budget far beyond the fitted curves.
    """
    law = _law(path, "anneal", "armillary fit anneal").law
    parameters = parse_size(size)
    curve = None if given is None else read_curve(given, parameters)
    best = best_schedule(law, size=parameters, steps=steps, given=curve, peak_lr=peak_lr)
    if out is not None:
        rows: list[list[str | float]] = [
            [float(s), float(lr)] for s, lr in zip(best.curve.step, best.curve.lr, strict=True)
        ]
        workbench.Rows(["step", "lr"], rows).write(out)
    return {
        **asdict(best.chosen),
        "decay_start": best.decay_start,
        "extrapolation": best.extrapolation,
        "free_form_gain": best.chosen.loss - best.free.loss,
        "other_lengths_of_decay": [{"share": o.share, "loss": o.loss, "excess": o.excess} for o in best.nearby],
        "other_ends": [asdict(ending) for ending in best.endings],
        "peak_lr": float(best.curve.lr.max()),
        "end_lr": float(best.curve.lr[-1]),
        "meaning": (
            "share: of all steps, the part that decays; end: last rate over the peak rate (end_lr over peak_lr); "
            "excess and lost: loss beyond that of the chosen schedule, and beyond that of one planned for the length"
        ),
    }


def hyperparameters(path: Path, size: str, tokens: str) -> dict[str, Any]:
    """The best learning rate and batch size for a model of ``size`` on ``tokens``, with intervals and flat ranges.

    Raises:
        UsageError: a law of another kind, an invalid size or number of tokens.
    """
    law = _law(path, "hyperparameters", "armillary fit scaling --columns N,D,lr,bs,loss")
    best = law.law.optimum(parse_size(size), parse_size(tokens))
    rows = zip(("lr", "bs"), (best.lr, best.bs), (best.lr_flat, best.bs_flat), strict=True)
    return {
        "best": [
            {"what": law.features[2 + i], **_interval(value), "flat_from": flat[0], "flat_to": flat[1]}
            for i, (_, value, flat) in enumerate(rows)
        ],
        "loss": _interval(best.loss),
        "extrapolation": best.extrapolation,
        "meaning": (
            f"--params must count the same as the law's column '{law.features[0]}': for a model with experts, all "
            "parameters or only the active ones"
        ),
    }


def compare(points: Path, columns: Sequence[str] | None, family_column: str, at: Sequence[str]) -> dict[str, Any]:
    """Compare families of models (architectures, recipes) with the first one at a target scale.

    Args:
        points: one row per run, with a column that names its family.
        columns: parameters, tokens and the loss, in this order; None to recognise them by name. family_column: the
        column with the family.
        at: parameters and tokens of the target, as in ``parse_size``.

    Raises:
        UsageError: not three columns, not two numbers, fewer than two families, a bad entry.
    """
    if columns is not None and len(columns) != 3:
        raise UsageError(f"--columns {','.join(columns)}: give three: parameters, tokens and the loss")
    if len(at) != 2:
        raise UsageError(f"--at {','.join(at)}: give parameters and tokens of the target, such as 7B,4T")
    table = read_table(points)
    named = default_columns(table) if columns is None else [find_column(table, name) for name in columns]
    if len(named) != 3:
        raise UsageError(
            f"{points} has several losses ({', '.join(named[2:])}); choose one: --columns {named[0]},{named[1]},LOSS"
        )
    known = {feature: name for name, feature in known_features(named).items()}
    if {"params", "tokens"} <= known.keys():
        loss = next(name for name in named if name not in known.values())
        named = [known["params"], known["tokens"], loss]
    families = np.array(table.text(find_column(table, family_column)))
    sizes = table.sizes(named[:2])
    losses, _ = table.losses(named[2:])
    workbench.refuse_rising(table, sizes, losses, named[2:])
    workbench.warn_of_swapped(table, sizes, named[:2])
    workbench.warn_of_perplexities(points, losses, named[2:])
    good = np.isfinite(losses[:, 0])
    for row in np.flatnonzero(~good):
        warnings.warn(f"{table.entry(int(row), named[2])}: left out", SetAsideWarning, stacklevel=2)
    rows = {name: np.flatnonzero((families == name) & good) for name in dict.fromkeys(families.tolist())}
    runs = {name: (sizes[found], losses[found, 0]) for name, found in rows.items()}
    with workbench.about(points), rows_named(lambda family, i: table.where(int(rows[family][i])), named[2:]):
        comparison = compare_families(runs, (parse_size(at[0]), parse_size(at[1])))
    return {
        "form": comparison.form,
        "expected_loss": [
            {"family": name, "runs": len(runs[name][1]), **_interval(v)} for name, v in comparison.loss.items()
        ],
        "against": [
            {
                "family": v.family,
                "reference": v.reference,
                "probability_better": v.better,
                "compute_multiplier": float(v.multiplier.mean),
                "low": float(v.multiplier.low),
                "high": float(v.multiplier.high),
                "difference": float(v.difference.mean),
                "difference_low": float(v.difference.low),
                "difference_high": float(v.difference.high),
            }
            for v in comparison.versus
        ],
        "meaning": (
            "probability_better: that one run of the family ends with a lower loss than one of the reference; "
            "compute_multiplier (low to high): compute with which the reference reaches the same loss, as a multiple; "
            "difference (difference_low to difference_high): loss of one run over that of the reference, minus 1"
        ),
    }


def next_run(path: Path, target: Path, budget_flops: float, most: int = 10) -> dict[str, Any]:
    """The runs within a budget that would narrow the interval at the target most.

    Args:
        path: file of a scaling law.
        target: table of the runs to predict, with the columns of the law. budget_flops: more expensive runs (6 N D) are
        left out. most: the number of runs to list.

    Raises:
        UsageError: a law of another kind, a bad entry, a budget too small for any run.
    """
    law = _law(path, "scaling", "armillary fit scaling")
    table = read_table(target)
    at = table.sizes([find_column(table, name) for name in law.features])
    with workbench.about(table, law.targets):
        law.law.predict(at)  # raises; no single run can bring a refused target within reach
        runs = next_runs(law.law, at, budget_flops=budget_flops)[:most]
    return {
        "width_now": runs[0].width_before,
        "runs": [
            {
                **dict(zip(law.features, run.features.values(), strict=True)),
                "flops": run.flops,
                "width_after": run.width_after,
            }
            for run in runs
        ],
    }


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as YAML in its own order."""
    write_file(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def _law(path: Path, kind: str, verb: str) -> LawFile:
    law = read_law(path)
    if law.kind != kind:
        raise UsageError(f"{path} is a law of kind '{law.kind}'; give one that '{verb}' wrote")
    return law


def _interval(value: Prediction) -> dict[str, float]:
    return {"mean": float(value.mean), "low": float(value.low), "high": float(value.high)}


def _known(path: Path, field: str, given: dict[str, float], names: Sequence[str], what: str) -> None:
    for name in given:
        if name not in names:
            raise UsageError(f"{path}: {field}.{name}: the law has no {what} of that name; it has {', '.join(names)}")


def _described(optimum: Optimum, domains: Sequence[str]) -> dict[str, Any]:
    """An optimum as plain values; weights are rounded such that they still sum to 1."""
    weights = np.round(optimum.weights, 6)
    weights[weights.argmax()] += 1 - weights.sum()
    return {
        "weights": {name: round(float(w), 6) for name, w in zip(domains, weights, strict=True)},
        "predicted": dict(zip(("mean", "low", "high"), (float(v) for v in optimum.predicted), strict=True)),
        "noise": float(optimum.noise),
        "better_than": optimum.better_than,
        "flat": {
            name: {"low": round(float(low), 6), "high": round(float(high), 6), "matters": round(float(matters), 3)}
            for name, low, high, matters in zip(
                domains, optimum.flat_low, optimum.flat_high, optimum.matters, strict=True
            )
        },
    }
