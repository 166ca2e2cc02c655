"""A run that trains with a tracker beside it: live, killed and resumed, with a tracker that fails."""

from __future__ import annotations

import importlib.util
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import READERS

from armillary.recipe import Validation, read_result
from armillary.store.locks import is_locked
from armillary.trackers import Destination, RunFiles, Track
from armillary.train import train_run

pytest.importorskip("tensorboard", reason="pip install 'armillary[tensorboard]'")


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Every metric of a finished run."""
    values: dict[str, dict[int, float]] = {}
    for rows in RunFiles(folder).rows_after(0):
        for row in rows:
            for name, value in row.values.items():
                values.setdefault(name, {})[row.step] = value
    return values


def same(found: dict[str, dict[int, float]], wanted: dict[str, dict[int, float]]) -> None:
    """Equal names and steps, and values as float32; speeds are measured again where steps are repeated."""
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        if name != "tokens_per_s":
            assert found[name] == pytest.approx(values, rel=1e-6), name


def lacking(name: str, place: Path, run: str, folder: Path) -> bool:
    """Whether a tracker lacks a step; a step that is there twice is an error at once."""
    return len(READERS[name](place, "p", run).get("tokens", {})) < len(expected(folder)["tokens"])


@pytest.fixture
def spec(make_spec: Any) -> Any:
    return make_spec(steps=120, validation=Validation(every=20, windows=4))


def test_a_run_of_an_instant_is_there_when_it_ends(make_spec: Any, tiny_corpus: Any, tmp_path: Path) -> None:
    spec = make_spec()
    where = Destination("tensorboard", str(tmp_path / "tb"), "p")
    hook = Track(where, tmp_path / "run")
    train_run(spec, tiny_corpus, tmp_path / "run", hooks=[hook])
    hook.follower.start()
    hook.close()
    same(READERS["tensorboard"](tmp_path / "tb", "p", spec.id), expected(tmp_path / "run"))
    assert set(expected(tmp_path / "run")) >= {
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_s",
        "validation/sky/loss",
    }


@pytest.mark.slow
def test_killed_and_resumed_no_step_is_doubled_or_missing(spec: Any, tiny_corpus: Any, tmp_path: Path) -> None:
    from tracked_victim import process

    here = {"tensorboard": tmp_path / "tb", "mlflow": tmp_path / "m.db", "wandb": tmp_path, "trackio": tmp_path / "tr"}
    here = {name: place for name, place in here.items() if importlib.util.find_spec(name) is not None}
    wheres = [
        Destination(name, f"sqlite:///{place}" if name == "mlflow" else str(place), "p") for name, place in here.items()
    ]
    for die_at in (50, 90, 0):
        victim = process(spec, tiny_corpus.path, tmp_path / "run", wheres, die_at)
        victim.join(200)
        assert victim.exitcode == (-signal.SIGKILL if die_at else 0)
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 1
    for name, place in here.items():
        # on a busy machine the process of a tracker may still write, or may only begin to
        end = time.monotonic() + 120
        while is_locked(tmp_path / "run" / f".tracker-{name}.lock") or lacking(name, place, spec.id, tmp_path / "run"):
            assert time.monotonic() < end, name
            time.sleep(0.5)
        same(READERS[name](place, "p", spec.id), expected(tmp_path / "run"))


def test_a_tracker_that_fails_is_said_once_and_changes_nothing(
    make_spec: Any, tiny_corpus: Any, tmp_path: Path, undisturbed: Any, outcome: Any
) -> None:
    spec = make_spec(steps=60)
    (tmp_path / "tb").write_text("a file where a folder should be")
    said: list[str] = []
    hook = Track(Destination("tensorboard", str(tmp_path / "tb"), "p"), tmp_path / "run", say=said.append)
    train_run(spec, tiny_corpus, tmp_path / "run", hooks=[hook])
    hook.close()
    assert outcome(tmp_path / "run") == undisturbed(spec)
    assert len(said) == 1 and said[0].startswith("tensorboard: ") and "Not a directory" in said[0]
    command = f"armillary runs export {tmp_path / 'run'} --to tensorboard --at {tmp_path / 'tb'}"
    assert f"`{command}` adds what it lacks" in said[0]
    assert read_result(tmp_path / "run") is not None
