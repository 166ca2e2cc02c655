"""The human-readable summary of a law file as plain values, and the tables in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from armillary.laws.anneal.law import AnnealLaw
from armillary.laws.columns import ColumnReading, described
from armillary.laws.examination.gain import GainLaw
from armillary.laws.examination.law import ExaminationLaw
from armillary.laws.files import LawFile, write_law
from armillary.laws.hyperparameters.law import HyperparameterLaw
from armillary.laws.mixture.law import MixtureLaw
from armillary.laws.scaling.law import ScalingLaw


def save(path: Path, law: LawFile) -> dict[str, Any]:
    """Write a law file, and return its summary: JSON values, tables as lists of rows."""
    summary = {
        "columns": [asdict(reading) for reading in law.columns],
        "set_aside": law.set_aside,
        **_SUMMARIES[law.kind](law),
    }
    write_law(path, law, summary)
    return summary


def tables(summary: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a summary: titles and rows."""
    return [
        (key.replace("_", " "), value)
        for key, value in summary.items()
        if isinstance(value, list) and value and key not in ("columns", "set_aside")
    ]


def columns_read(summary: dict[str, Any]) -> list[str]:
    """Lines of text with the role of each column."""
    return described([ColumnReading(**reading) for reading in summary["columns"]])


def _scaling_summary(file: LawFile) -> dict[str, Any]:
    law: ScalingLaw = file.law
    per = {name: np.broadcast_to(value, len(file.targets)) for name, value in law.parameters_.items()}
    return {
        "parameters_of_form": law.form_,
        "weights_of_forms": [{"form": name, "weight": float(weight)} for name, weight in law.weights_.items()],
        "parameters": [
            {"loss": target, **{name: float(value[t]) for name, value in per.items()}}
            for t, target in enumerate(file.targets)
        ],
        "largest_runs_left_out": [
            {
                "left_out": left.what,
                "runs": len(left.rows),
                "times_the_compute": float(left.extrapolation.max()),
                "mean_absolute_relative_error": float(np.nanmean(np.abs(left.predicted / left.measured - 1))),
            }
            for left in law.holdout_error_
        ],
    }


def _hyperparameter_summary(file: LawFile) -> dict[str, Any]:
    law: HyperparameterLaw = file.law
    return {
        "parameters_of_form": law.form_,
        "diverged_runs": len(law.diverged_),
        "parameters": [
            {"parameter": name, "value": value, "share_told_by_the_runs": law.identified_.get(name)}
            for name, value in law.parameters_.items()
        ],
        "largest_runs_left_out": [
            {
                "left_out": left.what,
                "form": left.form,
                "runs": len(left.rows),
                "times_the_compute": float(left.extrapolation.max()),
                "mean_regret": float(left.regret.mean()) if len(left.regret) else None,
            }
            for left in law.held_out_
        ],
    }


def _mixture_summary(file: LawFile) -> dict[str, Any]:
    law: MixtureLaw = file.law
    held = law.held_out_
    return {
        "runs": len(law.mixtures_),
        "sizes": ", ".join(f"{size:g}" for size in law.sizes_),
        "tokens": ", ".join(f"{tokens:g}" for tokens in np.unique(law.run_tokens_)),
        "held_out": [
            {
                "loss": target,
                "rank_correlation": float(held.spearman[t]),
                "rmse": float(held.rmse[t]),
                "noise": float(law.noise_[t]),
                **{form: float(weight[t]) for form, weight in law.chosen_.items()},
            }
            for t, target in enumerate(file.targets)
        ],
    }


def _anneal_summary(file: LawFile) -> dict[str, Any]:
    law: AnnealLaw = file.law
    return {
        "weights_of_forms": [{"form": name, "weight": weight} for name, weight in law.weights_.items()],
        "units": [{"learning_rate": law.unit_rate_, "steps": law.unit_steps_}],
        "parameters": [
            {"form": form, "size": size, **values}
            for form, sizes in law.parameters_.items()
            if law.weights_[form] == max(law.weights_.values())
            for size, values in sizes.items()
        ],
        "held_out": [
            {
                "schedule": held.name,
                "size": f"{held.size:g}",
                "left_out": "size and schedule" if held.new_size else "schedule",
                "mean_absolute_relative_error": held.error,
            }
            for held in law.held_out_
        ],
    }


def _examination_summary(file: LawFile) -> dict[str, Any]:
    law: ExaminationLaw = file.law
    return {
        "runs_above_chance": law.above_chance_,
        "weights_of_forms": [{"form": form, "weight": weight} for form, weight in law.weights_.items()],
        "parameters": [law.parameters_],
        "best_runs_left_out": [
            {
                "runs": len(left.rows),
                "times_below_the_loss": left.extrapolation,
                "mean_error": float(np.mean(np.abs(left.predicted - left.measured))),
                "inside": int(((left.low <= left.measured) & (left.measured <= left.high)).sum()),
            }
            for left in law.held_out_
        ],
    }


def _gain_summary(file: LawFile) -> dict[str, Any]:
    law: GainLaw = file.law
    return {"largest_part": law.largest_, "parameters": [law.parameters_]}


_SUMMARIES = {
    "scaling": _scaling_summary,
    "hyperparameters": _hyperparameter_summary,
    "mixture": _mixture_summary,
    "anneal": _anneal_summary,
    "examination": _examination_summary,
    "gain": _gain_summary,
}
