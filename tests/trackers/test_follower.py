"""The process beside a training: a large run over ranks, all runs of a study, and its own death."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from made_runs import READERS, made_run, made_spec

from armillary.recipe import LargeRun, Trackers, Validation
from armillary.trackers import Destination, Follower, RunFiles
from armillary.trackers.mirror import Mirror

pytest.importorskip("tensorboard", reason="pip install 'armillary[tensorboard]'")
pytestmark = pytest.mark.slow

PATIENCE_S = 60.0


def wait_for(path: Path, pattern: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not list(path.rglob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_all_runs_that_train_from_now_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    old = made_run(runs / "old", made_spec(seed=1))
    os.utime(runs / "old" / "events.jsonl", (1, 1))
    follower = Follower(Destination("tensorboard", str(tmp_path / "tb"), "p"), runs, all_runs=True)
    follower.start()
    first = made_run(runs / "first", made_spec(seed=2))
    wait_for(tmp_path / "tb", "*tfevents*")
    second = made_run(runs / "second", made_spec(seed=3), until=30)
    assert follower.close() == []
    assert len(READERS["tensorboard"](tmp_path / "tb", "p", first.id)["loss"]) == 60
    assert len(READERS["tensorboard"](tmp_path / "tb", "p", second.id)["loss"]) == 29
    assert not (tmp_path / "tb" / old.id).exists()


@pytest.mark.parametrize("all_runs", [False, True])
def test_what_an_earlier_process_holds_until_after_the_end_is_written_then(all_runs: bool, tmp_path: Path) -> None:
    """The process of a killed training may write longer than the resumed training lasts."""
    where = Destination("tensorboard", str(tmp_path / "tb"), "p")
    folder = tmp_path / "runs" / "run"
    spec = made_run(folder, until=30)
    earlier = Mirror(RunFiles(folder), where)
    assert earlier.sync() == 29
    made_run(folder)
    follower = Follower(where, folder.parent if all_runs else folder, all_runs=all_runs)
    follower.start()
    closing = Thread(target=follower.close)
    closing.start()
    time.sleep(6.0)
    assert closing.is_alive()
    earlier.close()
    closing.join()
    assert len(READERS["tensorboard"](tmp_path / "tb", "p", spec.id)["loss"]) == 60


def test_its_death_is_said_once_with_the_remedy(tmp_path: Path) -> None:
    made_run(tmp_path / "run", until=30)
    follower = Follower(Destination("tensorboard", str(tmp_path / "tb"), "p"), tmp_path / "run")
    follower.start()
    wait_for(tmp_path / "tb", "*tfevents*")
    assert follower._process is not None
    os.kill(follower._process.pid, signal.SIGKILL)
    follower._process.wait()
    (said,) = follower.words()
    assert said.startswith("tensorboard: its process has ended (code -9). Training goes on; afterwards `armillary")
    follower.start()
    assert follower.words() == [] and follower.close() == []


def test_a_large_run_over_ranks(make_spec: Any, tiny_corpus: Any, tmp_path: Path) -> None:
    from armillary.launch import launch

    spec = make_spec(steps=60, validation=Validation(every=20, windows=4))
    trackers = Trackers.model_validate({"tensorboard": {"folder": str(tmp_path / "tb")}})
    large = LargeRun(name="two", corpus=str(tiny_corpus.path), run=spec, trackers=trackers)
    result = launch(large, tmp_path / "run", nproc=2, reporter=_Quiet)
    assert result is not None and result.run == spec.id
    found = READERS["tensorboard"](tmp_path / "tb", "two", f"two-{spec.id[:8]}")
    assert sorted(found["loss"]) == list(range(1, 61)) and sorted(found["validation/sky/loss"]) == [20, 40, 60]


class _Quiet:
    def __call__(self, *_: Any) -> None:
        """Ignore progress."""

    def say(self, text: str) -> None:
        """Ignore a line."""

    def close(self) -> None:
        """Nothing is open."""
