"""Ranks that cannot start, or die before their first step: one line that says which, why and what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from armillary.launch.ranks.group import joined, meeting_place, place
from armillary.launch.ranks.local import Supervision, start_ranks
from armillary.recipe import ArmillaryError, UsageError


@pytest.fixture
def environment(monkeypatch):
    """Set what a launcher sets, but for what is None."""

    def act(**changes):
        values = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29712", **changes}
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return act


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"MASTER_ADDR": None},
            "environment lacks MASTER_ADDR; it needs RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
        ),
        ({"MASTER_PORT": ""}, "environment lacks MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', but must be a whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000, but a port is 1 to 65535"),
        ({"RANK": "one"}, "RANK is 'one', but must be a whole number"),
        ({"RANK": "2"}, "RANK is 2, but must be 0 to WORLD_SIZE - 1 (1)"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"WORLD_SIZE": "0"}, "RANK is 0, but must be 0 to WORLD_SIZE - 1 (-1)"),
    ],
)
def test_an_environment_that_cannot_be_right_is_refused_before_anything_waits(environment, changes, said):
    environment(**changes)
    with pytest.raises(UsageError) as caught, joined():
        pass
    assert said in str(caught.value)


def test_a_good_environment_is_read(environment):
    environment(RANK="1", WORLD_SIZE="4", MASTER_ADDR="node7")
    assert place() == (1, 4)
    assert meeting_place() == "node7:29712"


def test_a_port_that_is_taken_is_named(environment):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment(MASTER_PORT=str(port))
        with pytest.raises(ArmillaryError) as caught, joined():
            pass
    said = str(caught.value)
    assert said.startswith(f"rank 0 of 2 could not reach the others at localhost:{port}: ") and "\n" not in said
    assert "the port must be free on that host" in said


def die(context):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def freeze(folder, context):
    """Rank 0 ends; then rank 1 is stopped."""
    ended = folder / "ended"
    if os.environ["RANK"] == "0":
        ended.touch()
    else:
        while not ended.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_rank_that_freezes_while_the_others_have_ended_is_found(tmp_path):
    with pytest.raises(ArmillaryError, match=r"rank 1 frozen for [0-9.]+ s \(limit 0\.5 s\)"):
        start_ranks(partial(freeze, tmp_path), 2, Supervision(0))


def name_slot(context):
    """The rank in slot 0 dies; the others tell where they are."""
    if context.slot == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.slot, os.environ["RANK"], os.environ["WORLD_SIZE"]


@pytest.mark.parametrize(("fewer", "outcome"), [((2, 1), (1, "0", "2")), ((1,), (1, "0", "1"))])
def test_a_slot_that_loses_its_rank_again_and_again_is_left(fewer, outcome):
    said = []
    watch = Supervision(1, fewer, lambda kind, step, **data: said.append((kind, data)))
    assert start_ranks(name_slot, 3, watch) == outcome
    assert [data["ranks"] for kind, data in said if kind == "degraded"] == [fewer[0]]


def fail(context):
    raise RuntimeError("of no use:\nno such device")


@pytest.mark.parametrize(
    ("act", "restarts", "said"),
    [
        (die, 0, "rank 1 died (signal 9); its last output: "),
        pytest.param(
            fail,
            1,
            "again after 1 restart; its last output: RuntimeError: of no use: no such device; the",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ranks_that_die_before_the_first_step_end_with_one_line(act, restarts, said):
    with pytest.raises(ArmillaryError) as caught:
        start_ranks(act, 2, Supervision(restarts))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    # a kill is no crash of the program
    assert caught.value.crash == (None if act is die else "RuntimeError: of no use: no such device")


def _wait_for_stop(context):
    Path(os.environ["STOPPED"]).with_suffix(".begun").touch()
    end = time.monotonic() + 300
    while not context.stop() and time.monotonic() < end:
        time.sleep(0.02)
    Path(os.environ["STOPPED"]).with_suffix(f".{context.slot}.{'ended' if context.stop() else 'late'}").touch()


@pytest.mark.slow
def test_ranks_stop_when_the_watching_process_is_killed(tmp_path, monkeypatch):
    """The fork server, their parent, lives on as long as they do."""
    monkeypatch.setenv("STOPPED", str(tmp_path / "rank"))
    program = "import test_local\nif __name__ == '__main__': test_local.start_ranks(test_local._wait_for_stop, 1)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent) as watching:
        _wait_for(tmp_path / "rank.begun")
        watching.kill()
    _wait_for(tmp_path / "rank.0.ended")


def _wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, path.name
        time.sleep(0.05)
