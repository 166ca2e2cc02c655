"""Forecasts of examinations: recorded in the store before the examination, judged after it (contract 4).

A forecast answers a second question about a run: its score on a task. It has its own entry in the journal, next to the
prediction of the run's losses. It may be recorded after the run has begun, from the measured loss. The record says
whether it came before the run, so the two kinds of forecast cannot be confused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary import __version__
from armillary.evaluate import Examination, Result
from armillary.laws import read_table
from armillary.laws.files import read_law
from armillary.laws.workbench import predict_examination, predict_gain
from armillary.recipe import ArmillaryError, UsageError, canonical_hash
from armillary.store import Store

# How to query each kind of law that predicts an examination.
_PREDICTS = {"examination": predict_examination, "gain": predict_gain}


@dataclass(frozen=True)
class Question:
    """The question for a run's score on a task; ``id`` is its key in the store."""

    run: str
    task: str

    @property
    def id(self) -> str:
        """The id under which the forecast is recorded."""
        return canonical_hash([self.run, "examination", self.task])


def record_forecast(store: Store, asked: Question, law: Path, at: Path, interval: float = 0.9) -> dict[str, Any]:
    """Record the answer to a question before the examination, and return the record.

    Args:
        store: store of the run, which may not have begun.
        asked: run and task.
        law: file of a law of that task's examination, or of the gain from fine-tuning data.
        at: table of one row with the run's loss (and the ends of its interval if it is a prediction), or its data size.
        interval: coverage probability of the interval.

    Raises:
        UsageError: a wrong kind of law, not exactly one row, or a wrong entry.
        ArmillaryError: another forecast of this task for this run is recorded.
    """
    run, task = asked.run, asked.task
    file = read_law(law)
    if file.kind not in _PREDICTS:
        raise UsageError(
            f"{law} is a law of kind '{file.kind}'; give one that 'armillary fit examination' or 'armillary fit "
            "gain' wrote"
        )
    if (count := len(read_table(at).rows)) != 1:
        raise UsageError(f"{at} has {count} rows; give only the {file.features[0]} of run {run}")
    rows = _PREDICTS[file.kind](file, at, interval)
    values = dict(zip(rows.columns, rows.rows[0], strict=True))
    score = file.targets[-1]
    content = {
        "run": run,
        "examination": task,
        "interval": interval,
        "score": {"predicted": values[score], "low": values[f"{score}_low"], "high": values[f"{score}_high"]},
        # The inputs of the prediction; the name is kept from earlier versions.
        "loss": dict(zip(read_table(at).columns, read_table(at).rows[0], strict=True)),
        "extrapolation": values["extrapolation"],
        "law": hashlib.sha256(law.read_bytes()).hexdigest(),
        "sources": [source.sha256 for source in file.sources],
        "before_the_run": store.started_at(run) is None and not (store.run_folder(run) / "spec.json").exists(),
        "version": __version__,
    }
    known = store.prediction(asked.id)
    if known is None:
        store.record_prediction(asked.id, content)
    elif known["score"] != content["score"] or known["interval"] != interval:
        raise ArmillaryError(
            f"run {run} has a forecast of {task} of {known['recorded_at']} that differs; it is never rewritten"
        )
    known = store.prediction(asked.id)
    assert known is not None
    return known


def judge_forecast(
    store: Store, asked: Question, examination: Examination, metric: str | None = None
) -> dict[str, Any]:
    """Compare a recorded forecast with the examination; the first verdict is final.

    Returns:
        ``run``, ``status`` (``judged``), ``rows`` of one comparison as the verdict on a run has them, ``inside``,
        ``before_the_run``, ``n`` and ``settings`` of the examination.

    Raises:
        UsageError: the examination lacks the task, has several metrics of it, or is of another run.
        ArmillaryError: no forecast is recorded.
    """
    run, task = asked.run, asked.task
    forecast = store.prediction(asked.id)
    if forecast is None:
        raise ArmillaryError(f"run {run} has no forecast of {task}; record it before the examination")
    known = store.verdict(asked.id)
    if known is None:
        of = examination.model.get("run")
        if of is not None and of != run:
            raise UsageError(f"the examination is of run {of}, but the forecast is of run {run}")
        result = _result(examination, task, metric)
        score = forecast["score"]
        inside = bool(score["low"] <= result.value <= score["high"])
        row = {"domain": f"{task} ({result.metric})", **score, "measured": result.value, "inside": inside}
        verdict = {"run": run, "status": "judged", "rows": [row], "inside": int(inside), "n": result.n}
        verdict |= {"settings": result.settings, "before_the_run": forecast["before_the_run"]}
        store.record_verdict(asked.id, verdict)
        known = store.verdict(asked.id)
        assert known is not None
    return known


def _result(examination: Examination, task: str, metric: str | None) -> Result:
    """The score of the whole task."""
    found = [one for one in examination.results if one.task == task and one.subset == task]
    if metric is not None:
        found = [one for one in found if one.metric == metric]
    if len(found) == 1:
        return found[0]
    if not found:
        there = ", ".join(f"{one.task} ({one.metric})" for one in examination.results if one.subset == one.task)
        raise UsageError(f"the examination has no score {task}{f' ({metric})' if metric else ''}; it has {there}")
    raise UsageError(f"{task} has the metrics {', '.join(one.metric for one in found)}; name one with --metric")
