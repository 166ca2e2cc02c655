"""A rank of a launcher ends itself when its steps stop, and only then."""

import multiprocessing
import time
from pathlib import Path

import pytest

from armillary.goodput import read_events
from armillary.launch.ranks.watchdog import watched
from armillary.resilience import detect


def train(folder: Path, rank: int, hangs: bool) -> None:
    """Take some steps; then hang, or end the training and live on."""
    detect.HUNG_S = 0.3
    with watched(folder, "r", rank) as heartbeat:
        for step in range(1, 21):
            heartbeat.step(step)
            time.sleep(0.05)
        if hangs:
            time.sleep(60)
    time.sleep(1.5)


@pytest.mark.parametrize(("rank", "hangs", "found"), [(0, True, [("hung", 20)]), (1, True, []), (0, False, [])])
def test_a_rank_that_hangs_ends_with_an_event_of_the_first_rank(rank, hangs, found, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=train, args=(tmp_path, rank, hangs))
    process.start()
    process.join(50)
    assert process.exitcode == int(hangs)
    path = tmp_path / "events.jsonl"
    events = list(read_events(path)) if path.exists() else []
    assert [(e.data["found"], e.step) for e in events if e.kind == "detected"] == found
