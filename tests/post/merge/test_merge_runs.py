"""Runs and checkpoints of our own are merged: two runs from one start, and checkpoints of one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from armillary.model import load_weights
from armillary.post.merge import MergeOptions, merge, read_record
from armillary.recipe import RunSpec, UsageError
from armillary.train import start_from, train_run


@pytest.fixture(scope="module")
def runs(make_spec: Callable[..., RunSpec], tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``one`` and ``two`` from it, and ``apart`` from another seed; ``base`` keeps two checkpoints."""
    place = tmp_path_factory.mktemp("runs")
    train_run(make_spec(), tiny_corpus, place / "base", keep=(8, 12))
    start = start_from(place / "base")
    for name, seed in (("one", 1), ("two", 2)):
        train_run(make_spec(seed=seed, steps=6, start=start), tiny_corpus, place / name)
    train_run(make_spec(seed=9), tiny_corpus, place / "apart")
    return place


def test_two_runs_from_one_start_become_a_start(
    runs: Path, tmp_path: Path, make_spec: Callable[..., RunSpec], tiny_corpus: Any
) -> None:
    record = merge(runs / "base", [runs / "one", runs / "two"], tmp_path / "merged", MergeOptions("task"))
    found = load_file(tmp_path / "merged" / "model.safetensors")
    one, two = (load_file(runs / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in found.items():
        assert abs(tensor - (one[name] + two[name]) / 2).max() < 1e-6
    load_weights(tmp_path / "merged" / "model.safetensors", make_spec().model)
    start = start_from(tmp_path / "merged" / "model.safetensors")
    train_run(make_spec(steps=6, start=start), tiny_corpus, tmp_path / "next")
    assert record["runs"][0]["run"] == make_spec().id
    assert ["weights:" + start.sha256, "merged over"] in [edge[:2] for edge in record["lineage"]]
    assert read_record(tmp_path / "merged") == record


def test_checkpoints_of_one_run_are_averaged(runs: Path, tmp_path: Path) -> None:
    checkpoints = [runs / "base" / "checkpoints" / f"step-{step}" for step in (8, 12)]
    merge(checkpoints[0], checkpoints, tmp_path / "merged", MergeOptions())
    merge(runs / "base", [checkpoints[-1]], tmp_path / "last", MergeOptions())
    last, final = (load_file(p / "model.safetensors") for p in (tmp_path / "last", runs / "base"))
    assert all((last[name] == final[name]).all() for name in final)
    assert last.keys() == load_file(tmp_path / "merged" / "model.safetensors").keys()


def test_a_run_from_another_seed_or_shape_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not come from"):
        merge(runs / "base", [runs / "one", runs / "apart"], tmp_path / "merged", MergeOptions())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "spec.json").write_bytes((runs / "one" / "spec.json").read_bytes())
    with pytest.raises(Exception, match="the run is not finished"):
        merge(runs / "base", [tmp_path / "half"], tmp_path / "merged", MergeOptions())
