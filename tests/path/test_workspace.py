"""The whole path on a tiny corpus: what it leaves, that it goes on, and that nothing is trained twice."""

import json
from datetime import datetime

import pytest

from armillary.goodput import read_events
from armillary.path import Workspace
from armillary.recipe import Recipe
from armillary.release import check_lineage
from armillary.study import Store

_SETTINGS = {
    "name": "tiny",
    "target": {"voyage": 0.7, "code": 0.3},
    "model": {"depth": 2},
    "families": [
        {"name": "base", "width_per_layer": 8, "head_dim": 8},
        {"name": "heavy", "width_per_layer": 8, "head_dim": 8, "ffn_ratio": 4.0, "qk_norm": True},
    ],
    "training": {"tokens": 12_000, "context_length": 16, "batch_sequences": 8, "seeds": [1, 2], "precision": "fp32"},
    "study": {
        "mixture": {"depth": 1, "runs": 10, "tokens": 8_000, "candidates": 2, "confirm_seeds": 2},
        "anneal": {"depth": 1, "tokens": 8_000, "shares": [0.2, 0.4], "shapes": ["linear"], "seeds": 2},
        "ladder": {"depths": [1, 2], "tokens": 10_000, "fractions": [0.3, 0.6, 1.0], "families": ["base", "heavy"]},
    },
    "validation_windows": 8,
}


@pytest.mark.slow
def test_the_whole_path(tiny_corpus_spec, tmp_path):
    recipe = Recipe.model_validate({**_SETTINGS, "corpus": tiny_corpus_spec.model_dump()})
    workspace = Workspace(recipe, tmp_path / "out", workers=2)
    workspace.report("ladder")
    assert not (tmp_path / "out" / "summary.json").exists()
    evidence = workspace.report("release")

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"wall_s", "runs", "flops", "target", "predictions", "recorded_at", "started_at"} <= summary.keys()
    assert summary["recorded_at"] < summary["started_at"]
    assert set(summary["target"]) == {"found", "natural", "uniform"}
    assert {row["domain"] for row in summary["predictions"]} == {"sky", "sea", "code", "voyage", "target"}
    for row in summary["predictions"]:
        assert row["inside"] == (row["low"] <= row["measured"] <= row["high"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert "heavy" in html  # both families are climbed side by side and compared
    assert {o.share for o in evidence.anneal.curve.nearby} >= {0.2, 0.4} and len(evidence.anneal.curve.held_out) == 2
    assert 'id="record"' in html and "The law of the learning-rate curve" in html
    target = evidence.target.arms[0]
    assert sum(target.epochs.values()) > 0
    assert target.target[0] == pytest.approx(0.7 * target.loss[0]["voyage"] + 0.3 * target.loss[0]["code"])

    lineage = check_lineage(tmp_path / "out" / "model")
    assert lineage["run"] == target.runs[0] == summary["target_run"]
    known = {row["run"] for row in Store(tmp_path / "out" / "store").overview()}
    assert {run for runs in lineage["argued_by"].values() for run in runs} <= known
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")("sun moon", return_tensors="pt")
    assert model(**tokens).logits.shape[-1] == 300

    # The run that was predicted began after the prediction, by its own account too.
    begun = next(read_events(tmp_path / "out" / "store" / "runs" / summary["target_run"] / "events.jsonl")).time_s
    recorded = datetime.fromisoformat(summary["recorded_at"]).timestamp()
    assert recorded < datetime.fromisoformat(summary["started_at"]).timestamp() <= begun + 0.001

    rates = workspace.store().rates_overview()
    assert {(row["layers"], row["how"]) for row in rates} >= {(1, "probe"), (2, "probe")}
    assert all(row["tokens_per_s"] > 0 for row in rates)

    before = {row["run"]: row["attempts"] for row in Store(tmp_path / "out" / "store").overview()}
    assert set(before.values()) == {1}
    again = workspace.report("release", "zh")
    assert {row["run"]: row["attempts"] for row in Store(tmp_path / "out" / "store").overview()} == before
    assert again.verdict == evidence.verdict and again.prediction == evidence.prediction
    assert (tmp_path / "out" / "report.zh.html").exists() and (tmp_path / "out" / "report.html").read_text() == html
