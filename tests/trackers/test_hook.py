"""A run that trains with a tracker beside it: live, killed and resumed, with a tracker that fails."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from armillary.recipe import Validation, read_result
from armillary.trackers import Destination, RunFiles, Track
from armillary.train import train_run

pytest.importorskip("tensorboard", reason="pip install 'armillary[tensorboard]'")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in a folder of one run, by TensorBoard's own reader; a step that is there twice is an error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    values: dict[str, dict[int, float]] = {}
    for tag in found.Tags()["scalars"]:
        events = found.Scalars(tag)
        assert max(Counter(event.step for event in events).values()) == 1, tag
        values[tag] = {event.step: event.value for event in events}
    return values


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
    same(scalars(tmp_path / "tb" / spec.id), expected(tmp_path / "run"))
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

    where = Destination("tensorboard", str(tmp_path / "tb"), "p")
    for die_at in (50, 90, 0):
        victim = process(spec, tiny_corpus.path, tmp_path / "run", [where], die_at)
        victim.join(120)
        assert victim.exitcode == (-signal.SIGKILL if die_at else 0)
        time.sleep(0 if die_at else 1)
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 1
    same(scalars(tmp_path / "tb" / spec.id), expected(tmp_path / "run"))


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
    assert f"`armillary runs export {tmp_path / 'run'} --to tensorboard` adds what it lacks" in said[0]
    assert read_result(tmp_path / "run") is not None
