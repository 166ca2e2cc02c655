"""Runs that an older version left half done resume to the numbers that it would have reached itself.

``tests/fixtures/before-seams`` was written by the commit fc3a88b: a corpus, four specifications, three half-done runs
(one of them by two ranks) and what that commit then measured when it resumed each on one device.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary.corpus import Corpus
from armillary.recipe import RunSpec, read_spec
from armillary.train import Fleet, read_metrics, train_run, verify_run
from armillary.train.fleet import Assignment

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before-seams"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
# Other processors and versions of torch round sums of products in another order.
SAME_MACHINE = EXPECTED["machine"] == {
    "torch": torch.__version__,
    "cpu": torch.backends.cpu.get_cpu_capability(),
    "machine": platform.machine(),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus of the fixtures, copied because opening it writes a stamp beside it."""
    return Corpus.open(Path(shutil.copytree(FIXTURES / "corpus", tmp_path_factory.mktemp("older") / "corpus")))


def assert_close(rows, expected):
    """Two tables of metrics agree up to rounding, and in the steps that were validated."""
    for found, wanted in zip(rows, expected, strict=True):
        known = {key: value for key, value in found.items() if value is not None}
        assert known == pytest.approx({key: value for key, value in wanted.items() if value is not None}, rel=1e-4)


def assert_reached(name, folder):
    """The folder holds what the older version reached, bit for bit on a machine as its own."""
    expected = EXPECTED["runs"][name]
    table = read_metrics(folder)
    rows, weights = table.to_pylist(), load_file(folder / "model.safetensors")
    result = json.loads((folder / "result.json").read_text())
    assert table.column_names == expected["columns"]
    if SAME_MACHINE:
        assert rows == expected["metrics"]
        assert {key: result[key] for key in expected["result"]} == expected["result"]
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == expected["weights"]
    assert_close(rows, expected["metrics"])
    for key, tensor in load_file(FIXTURES / f"{name}.safetensors").items():
        torch.testing.assert_close(weights.pop(key), tensor, rtol=1e-3, atol=1e-4)
    assert not weights
    assert verify_run(folder) == []


@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_a_half_done_run_of_an_older_version_resumes_to_its_numbers(name, corpus, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(FIXTURES / "half" / name, folder)
    spec = read_spec(folder)
    assert spec.id == EXPECTED["ids"][name]
    assert verify_run(folder) == []
    steps: list[int] = []
    result = train_run(spec, corpus, folder, progress=steps.append)
    assert steps[0] == (9 if name == "ranks" else 8)  # the first steps came from the checkpoint
    assert asdict(result)["run"] == spec.id
    assert_reached(name, folder)


def test_a_half_done_run_of_an_older_version_resumes_in_a_stack(corpus, tmp_path):
    shutil.copytree(FIXTURES / "half" / "dense", tmp_path / "run")
    spec = read_spec(tmp_path / "run")
    with Fleet(spec, corpus, 2) as fleet:
        fleet.add(Assignment(spec, tmp_path / "run"))
        while fleet.runs:
            fleet.step()
    assert_close(read_metrics(tmp_path / "run").to_pylist(), EXPECTED["runs"]["dense"]["metrics"])


def test_specifications_of_an_older_version_keep_their_ids_and_their_text():
    specs = EXPECTED["store"]["specs"]
    assert sorted(specs) == sorted(EXPECTED["ids"].values())
    for run, content in specs.items():
        spec = RunSpec.model_validate(content)
        assert spec.id == run
        assert spec.model_dump(mode="json") == content
