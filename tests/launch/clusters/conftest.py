"""A file of a large run over the tiny corpus, homes of records and profiles for each test, and the command line."""

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
    """Records and profiles of the test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3] / "src"))


@pytest.fixture
def run_file(make_spec, tiny_corpus, tmp_path):
    """Write a large run: ``steps`` steps in a folder whose name is as hostile as a name may be."""

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
def armillary():
    """Run the command line in a process of its own."""

    def run(*arguments, check=True):
        done = subprocess.run(
            [sys.executable, "-m", "armillary", *map(str, arguments)],
            capture_output=True, text=True, env=dict(os.environ), check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
