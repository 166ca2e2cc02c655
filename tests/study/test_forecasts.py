"""Forecasts of examinations: recorded once, judged once, and seen when they were changed."""

import json

import numpy as np
import pytest
import sqlalchemy as sa

from armillary.evaluate.results import Examination, Result
from armillary.laws import GainLaw, workbench
from armillary.recipe import ArmillaryError, UsageError
from armillary.store import Store, schema
from armillary.study.examinations import Question, judge_forecast, record_forecast

RUN = "ab" * 16
MMLU = Question(RUN, "mmlu")


def _csv(path, names, *rows):
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def law(tmp_path):
    losses = np.linspace(3.6, 2.9, 8)
    accuracy = 0.25 + 0.6 / (1 + np.exp(6 * (losses - 3.1)))
    points = _csv(tmp_path / "p.csv", "loss,accuracy", *zip(losses, accuracy, strict=True))
    workbench.save(tmp_path / "law.json", workbench.fit_examination(points, ["loss", "accuracy"], 0.25, 1000))
    return tmp_path / "law.json"


@pytest.fixture
def at(tmp_path):
    return _csv(tmp_path / "at.csv", "loss,loss_low,loss_high", [2.85, 2.8, 2.9])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def _examined(value, metric="acc", model=None, task="mmlu"):
    result = Result(task, task, metric, value, value - 0.02, value + 0.02, 1000, 0.0, None, "s")
    return Examination((result,), {}, model or {})


def test_recorded_before_and_judged_after(store, law, at):
    said = record_forecast(store, MMLU, law, at)
    assert said["score"]["low"] < said["score"]["predicted"] < said["score"]["high"]
    assert said["before_the_run"] and said["recorded_at"]
    assert record_forecast(store, MMLU, law, at) == said
    verdict = judge_forecast(store, MMLU, _examined(said["score"]["predicted"]))
    assert (verdict["inside"], verdict["rows"][0]["inside"], verdict["n"]) == (1, True, 1000)
    # The first verdict stays.
    assert judge_forecast(store, MMLU, _examined(0.0)) == verdict
    assert store.chain().problems == ()
    assert [edge.origin for edge in store.edges([RUN])] == [f"prediction:{MMLU.id}"]


def test_the_gain_of_fine_tuning_is_recorded_and_judged_likewise(store, tmp_path):
    parts = [[100 * 2**i, 0.2 + 0.1 * i + 0.01 * seed] for i in range(3) for seed in range(2)]
    points = _csv(tmp_path / "parts.csv", "examples,accuracy", *parts)
    law = workbench.fit_gain(points, ["examples", "accuracy"], GainLaw(items=400))
    workbench.save(tmp_path / "gain.json", law)
    at = _csv(tmp_path / "all.csv", "examples", [800])
    said = record_forecast(store, MMLU, tmp_path / "gain.json", at)
    assert 0.35 < said["score"]["low"] < said["score"]["predicted"] < said["score"]["high"] < 0.8
    assert said["extrapolation"] == 2 and said["loss"] == {"examples": "800"}
    assert judge_forecast(store, MMLU, _examined(0.5))["inside"] == 1


def test_a_score_outside_is_said_to_be(store, law, at):
    record_forecast(store, MMLU, law, at)
    assert judge_forecast(store, MMLU, _examined(0.26))["inside"] == 0


def test_a_forecast_is_never_rewritten(store, law, at, tmp_path):
    record_forecast(store, MMLU, law, at)
    with pytest.raises(ArmillaryError, match="never rewritten"):
        record_forecast(store, MMLU, law, _csv(tmp_path / "b.csv", "loss", [2.95]))
    with pytest.raises(ArmillaryError, match="never rewritten"):
        record_forecast(store, MMLU, law, at, interval=0.5)
    assert record_forecast(store, Question(RUN, "cmmlu"), law, at)["examination"] == "cmmlu"


def test_a_forecast_that_was_changed_is_seen(store, law, at):
    said = record_forecast(store, MMLU, law, at)
    content = {name: value for name, value in said.items() if name not in ("recorded_at", "sha256")}
    content["score"] = {"predicted": 0.9, "low": 0.8, "high": 1.0}
    with store.database.writing() as db:
        for name in db.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
            db.execute(sa.text(f"DROP TRIGGER {name}"))
        db.execute(sa.update(schema.predictions).values(content=content))
    with pytest.raises(ArmillaryError, match="cannot be judged"):
        judge_forecast(store, MMLU, _examined(0.9))


def test_what_is_refused(store, law, at, tmp_path):
    with pytest.raises(ArmillaryError, match="no forecast of mmlu"):
        judge_forecast(store, MMLU, _examined(0.5))
    with pytest.raises(UsageError, match="has 2 rows"):
        record_forecast(store, MMLU, law, _csv(tmp_path / "two.csv", "loss", [2.9], [2.8]))
    points = _csv(
        tmp_path / "s.csv", "params,tokens,loss", *[(n, 20 * n, 2 + 9 / n**0.2) for n in (1e6, 2e6, 4e6, 8e6, 2e7, 4e7)]
    )
    workbench.save(tmp_path / "other.json", workbench.fit_scaling(points, form="chinchilla"))
    with pytest.raises(UsageError, match="law of kind 'scaling'"):
        record_forecast(store, MMLU, tmp_path / "other.json", at)
    record_forecast(store, MMLU, law, at)
    with pytest.raises(UsageError, match="no score mmlu; it has gsm8k"):
        judge_forecast(store, MMLU, _examined(0.5, task="gsm8k"))
    with pytest.raises(UsageError, match="is of run other"):
        judge_forecast(store, MMLU, _examined(0.5, model={"run": "other"}))
    both = Examination((*_examined(0.5).results, *_examined(0.6, "acc_norm").results), {}, {})
    with pytest.raises(UsageError, match="acc, acc_norm; name one"):
        judge_forecast(store, MMLU, both)
    assert judge_forecast(store, MMLU, both, "acc_norm")["rows"][0]["measured"] == 0.6


def test_the_verb_prints_json(store, law, at, capsys, tmp_path):
    from armillary.cli.verbs.forecast import record

    store.close()
    record(law, at, RUN, "mmlu", tmp_path / "store", as_json=True)
    assert json.loads(capsys.readouterr().out)["examination"] == "mmlu"
