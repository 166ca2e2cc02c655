"""Fixtures: folders for records and profiles, a file of a large run on the tiny corpus, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    """Give each test empty folders for records and profiles."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3] / "src"))


@pytest.fixture
def run_file(make_spec, tiny_corpus, tmp_path):
    """Write the file of a large run, in a folder whose name contains quotes, blanks and shell syntax."""

    def write(steps=40, folder="a%j b'$(touch pwned)", every_steps=10, **spec):
        (tmp_path / folder).mkdir(exist_ok=True)
        document = {
            "name": "large",
            "corpus": str(tiny_corpus.path),
            "run": json.loads(make_spec(batch_sequences=8, steps=steps, **spec).model_dump_json(exclude_none=True)),
            "layout": {"dp_replicate": 2},
            "checkpoints": {"every_steps": every_steps},
        }
        path = tmp_path / folder / "run.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture
def recipe_file(tiny_corpus_spec, tmp_path):
    """A recipe with all studies, of runs that take seconds."""
    (tmp_path / "study").mkdir()
    document = {
        "name": "tiny",
        "corpus": tiny_corpus_spec.model_dump(mode="json"),
        "target": {"voyage": 0.7, "code": 0.3},
        "model": {"depth": 2},
        "families": [{"name": "base", "width_per_layer": 8, "head_dim": 8}],
        "training": {
            "tokens": 12_000, "context_length": 16, "batch_sequences": 8, "seeds": [1, 2], "precision": "fp32",
        },
        "study": {
            "mixture": {"depth": 1, "runs": 10, "tokens": 8_000, "candidates": 2, "confirm_seeds": 2},
            "anneal": {"depth": 1, "tokens": 8_000, "shares": [0.2, 0.4], "shapes": ["linear"], "seeds": 2},
            "ladder": {"depths": [1, 2], "tokens": 10_000, "fractions": [0.3, 0.6, 1.0]},
        },
        "validation_windows": 8,
    }  # fmt: skip
    path = tmp_path / "study" / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def whole_study():
    """Check that a submitted recipe came to its end, each run once, and return the losses of the target."""

    def check(results):
        summary = json.loads((results / "summary.json").read_text())
        assert (results / "report.html").exists() and (results / "model" / "model.safetensors").exists()
        (log,) = (results / "jobs").glob("*/log.txt")
        assert "attempt 2 begins on" in log.read_text()
        runs = list((results / "store" / "runs").iterdir())
        assert len(runs) == summary["runs"] and all((run / "result.json").exists() for run in runs)
        return summary["target"]

    return check


@pytest.fixture
def armillary():
    """Run the command line in a subprocess."""

    def run(*arguments, check=True):
        done = subprocess.run(
            [sys.executable, "-m", "armillary", *map(str, arguments)],
            capture_output=True, text=True, env=dict(os.environ), check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
