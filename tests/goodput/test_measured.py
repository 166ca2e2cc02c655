"""A run with faults agrees with the simulation of its own measured times."""

import json

import pytest
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.goodput import Event, compare, one_tier, simulate, write_events
from armillary.recipe import UsageError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two hundred failures of a job that fails every 10 minutes, with few steps."""
    path = tmp_path_factory.mktemp("simulated") / "events.jsonl"
    cluster = one_tier(4, 4 / 6, 2.0, 100.0, 20.0).model_copy(update={"step_s": 5.0})
    write_events(path, simulate(cluster, 200 / 144, seed=5))
    return path


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Simulate fewer failures."""
    monkeypatch.setattr("armillary.goodput.measured.FAILURES", 200)


def test_what_was_put_in_is_measured_and_the_shares_agree(file):
    found = compare(file)
    measured = found["measured"]
    assert measured["faults"] == pytest.approx(200, rel=0.25)
    assert measured["mtbf_s"] == pytest.approx(600, rel=0.25)
    assert measured["checkpoint_interval_s"] == pytest.approx(100.0, rel=0.05)
    assert measured["checkpoint_block_s"] == pytest.approx(2.0, rel=0.1)
    assert measured["recovery_s"] == pytest.approx(20.0, rel=0.1)
    assert found["goodput"] == pytest.approx(found["simulated"], abs=0.02)
    assert found["formula"] == pytest.approx(found["simulated"], abs=0.02)


def test_the_command_fails_where_they_are_apart(file, tmp_path):
    agree = CliRunner().invoke(app, ["goodput", "compare", str(file), "--json"])
    assert agree.exit_code == 0 and json.loads(agree.output)["measured"]["faults"] > 100
    # steps that waited for their batches, which the simulator does not know
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        event["data"]["data_wait_s"] = 0.1 * (event["duration_s"] or 0)
    (tmp_path / "events.jsonl").write_text("\n".join(json.dumps(event) for event in events) + "\n")
    assert CliRunner().invoke(app, ["goodput", "compare", str(tmp_path)]).exit_code == 1


def test_a_run_without_faults_is_refused(tmp_path):
    events = [Event(time_s=0, run="r", kind="start", step=0),
              Event(time_s=9, run="r", kind="progress", step=9, duration_s=9)]  # fmt: skip
    write_events(tmp_path / "events.jsonl", events)
    with pytest.raises(UsageError, match="has 0 faults that ended training, 0 recoveries and 0 checkpoints; a compar"):
        compare(tmp_path)
