"""The whole path on a tiny corpus: what it leaves, that it goes on, and that nothing is trained twice."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from armillary.goodput import read_events
from armillary.launch import launch
from armillary.path import Workspace
from armillary.publish import check_lineage
from armillary.recipe import Layout, Recipe, RunSpec, UsageError, load_training
from armillary.store import Store
from armillary.train import train_run

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
    said = []
    workspace = Workspace(recipe, tmp_path / "out", workers=2, say=said.append)
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
    # Curves of runs this short may look diverged to the law, which then says so.
    curve = evidence.anneal.curve
    if curve is None:
        assert any("the law of the learning-rate curve is left out" in text for text in said)
    else:
        assert {o.share for o in curve.nearby} >= {0.2, 0.4} and len(curve.held_out) == 2
    assert 'id="record"' in html and ("The law of the learning-rate curve" in html) == (curve is not None)
    assert any(text.startswith("mixture: ") for text in said) and evidence.unfinished == []
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


@pytest.mark.slow
def test_the_target_over_ranks_and_by_a_launcher_is_the_one_of_a_worker(tiny_corpus_spec, tmp_path, monkeypatch):
    recipe = Recipe.model_validate({**_SETTINGS, "corpus": tiny_corpus_spec.model_dump()})
    Workspace(recipe, tmp_path / "out", workers=2).go("predict")
    planned = (tmp_path / "out" / "plan.json").read_text()
    large = load_training(tmp_path / "out" / "target.yaml")
    launch(large, Path(large.folder), nproc=2, reporter=NoOne)
    over = Workspace(recipe.over(2), tmp_path / "out", workers=2)
    evidence = over.go("verdict")
    assert (tmp_path / "out" / "plan.json").read_text() == planned  # the studies stay what they are
    assert evidence.target.arms[0].runs[0] == Path(large.folder).name == evidence.verdict["run"]
    for arm in (evidence.target.arms[0], evidence.target.arms[2]):
        folder = evidence.store.run_folder(arm.runs[0])
        assert [e.kind for e in read_events(folder / "events.jsonl")].count("start") == 1
        spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
        alone = train_run(spec, evidence.corpus, tmp_path / spec.id)
        assert arm.loss[0] == pytest.approx(alone.loss, abs=1e-4)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"target\.yaml"):
        over.go("verdict")


def test_a_layout_that_does_not_fit_the_target_is_told_before_the_studies(tiny_corpus_spec, tmp_path):
    settings = {**_SETTINGS, "training": {**_SETTINGS["training"], "layout": {"tp": 3}}}
    recipe = Recipe.model_validate({**settings, "corpus": tiny_corpus_spec.model_dump()})
    workspace = Workspace(recipe, tmp_path / "out", workers=1)
    with pytest.raises(UsageError, match=r"training\.layout: n_heads \(2\) must be a multiple of tp \(3\)"):
        workspace.go("mixture")
    assert workspace.store().overview() == []
    with pytest.raises(UsageError, match=r"the layout has 3 ranks \(tp 3\), but 2 were requested"):
        recipe.over(2)
    assert recipe.over(3).training.layout == Layout(tp=3)


def test_more_workers_than_the_machine_can_hold_are_not_started(tiny_corpus_spec, tmp_path):
    recipe = Recipe.model_validate({**_SETTINGS, "corpus": tiny_corpus_spec.model_dump()})
    said = []
    workspace = Workspace(recipe, tmp_path / "out", workers=9999, say=said.append)
    executor = workspace._executor(workspace.store(), workspace.corpus())  # none is started before there is work
    assert 1 <= executor.n_workers < 9999
    (note,) = (line for line in said if "instead of" in line)
    assert note.startswith(f"{executor.n_workers} worker") and "instead of 9999: " in note


class NoOne:
    """A reporter that shows nothing."""

    def __call__(self, stage, done, total, note):
        pass

    def say(self, text):
        pass

    def close(self):
        pass


def test_what_a_run_lacks_is_told_before_the_studies(tiny_corpus_spec, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("sun moon star orbit\n" * 3)
    corpus = tiny_corpus_spec.model_dump()
    corpus["domains"]["voyage"]["source"] = str(short)
    recipe = Recipe.model_validate(
        {**_SETTINGS, "training": {**_SETTINGS["training"], "context_length": 64}, "corpus": corpus}
    )
    workspace = Workspace(recipe, tmp_path / "out", workers=1)
    with pytest.raises(UsageError, match="voyage"):
        workspace.go("mixture")
    assert workspace.store().overview() == []
