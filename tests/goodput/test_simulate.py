"""The simulated cluster: what each part costs, the same events for the same seed, the verbs."""

import json

import pytest
from typer.testing import CliRunner

from armillary.goodput import PUBLISHED_CAUSES, Cause, Cluster, Lemons, Repair, Stragglers, Tier, ledger, simulate
from armillary.recipe import UsageError

BASE = {"accelerators": 4096, "mtbf_accelerator_hours": 8_000, "recovery_s": 120, "step_s": 30.0}
PEER = Tier(interval_s=120, block_s=0.1, read_s=5, survives=1)
REMOTE = Tier(interval_s=1200, block_s=10, read_s=60)


def found(days=4, seed=0, **parts):
    return ledger({0: list(simulate(Cluster(**{**BASE, "tiers": (PEER, REMOTE), **parts}), days, seed))})


def test_the_same_seed_gives_the_same_events():
    cluster = Cluster(**BASE, tiers=(PEER, REMOTE))
    assert list(simulate(cluster, 5, 1)) == list(simulate(cluster, 5, 1)) != list(simulate(cluster, 5, 2))


def test_a_memory_of_peers_loses_less_than_remote_storage_alone():
    assert found().seconds["replayed"] < 0.2 * found(tiers=(REMOTE,)).seconds["replayed"]


def test_nodes_that_fail_together_take_the_memory_of_peers_with_them():
    alone = found(causes={"node": Cause(share=1.0)})
    together = found(causes={"switch": Cause(share=1.0, nodes=4)})
    assert together.replayed_steps > 3 * alone.replayed_steps


def test_hangs_are_noticed_after_their_timeout():
    hang = found(causes={"hang": Cause(share=1.0, detection_s=600)})
    assert hang.detection_s and min(hang.detection_s) == pytest.approx(600)
    assert hang.seconds["detection"] == pytest.approx(600 * hang.faults, rel=0.2)


def test_without_spares_the_job_waits_for_repairs():
    repair = Repair(median_s=7200, mean_s=20_000)
    none, many = found(spares=0, repair=repair), found(spares=20, repair=repair)
    assert none.seconds["waiting"] > 7200 and many.seconds["waiting"] == 0


def test_lemons_fail_more_often_until_they_are_removed():
    kept = found(lemons=Lemons(share=0.05, times=30))
    removed = found(lemons=Lemons(share=0.05, times=30, removed_after=1))
    assert kept.faults > 1.5 * removed.faults > 1.2 * found().faults


def test_stragglers_slow_the_job_until_they_are_noticed():
    slow = found(stragglers=Stragglers(mtbf_node_hours=5000, slowdown=1.5, detection_s=900))
    assert slow.seconds["degraded"] > 0 == found().seconds["degraded"]


def test_published_causes_are_those_of_the_table():
    assert sum(cause.share for cause in PUBLISHED_CAUSES.values()) == pytest.approx(1)
    assert PUBLISHED_CAUSES["faulty GPU"].share == pytest.approx(148 / 419)
    assert found(causes=PUBLISHED_CAUSES).faults > 10


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="positive number of days"):
        next(simulate(Cluster(**BASE, tiers=(REMOTE,)), 0))
    with pytest.raises(UsageError, match="a checkpoint is written every 1e-06 s, which is more than 20,000,000 times"):
        next(simulate(Cluster(**BASE, tiers=(Tier(interval_s=1e-6, block_s=0, read_s=0),)), 5))
    with pytest.raises(UsageError, match="the job fails every"):
        next(simulate(Cluster(**{**BASE, "mtbf_accelerator_hours": 1e-6}, tiers=(REMOTE,)), 5))
    for wrong in ({"spares": 1}, {"causes": {"a": Cause(share=0.5)}}, {"tiers": ()}):
        with pytest.raises(ValueError, match=r"repair|sum to 1|tiers"):
            Cluster(**{**BASE, "tiers": (REMOTE,), **wrong})


def test_verbs(tmp_path):
    from armillary.cli.verbs import app

    def call(*arguments):
        return CliRunner().invoke(app, ["goodput", *map(str, arguments)])

    out = tmp_path / "events.jsonl"
    numbers = ("--accelerators", 1024, "--mtbf-accelerator-hours", 20000, "--recovery-s", 300, "--days", 5)
    done = call("simulate", *numbers, "--checkpoint-block-s", 5, "--out", out, "--json")
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert abs(said["goodput"] - said["formula"]) < 0.02
    again = call("simulate", *numbers, "--checkpoint-block-s", 5, "--out", out)
    assert isinstance(again.exception, UsageError) and "exists" in str(again.exception)  # it may be a real run's

    done = call("report", out, "--json", "--svg", tmp_path / "timeline.svg")
    report = json.loads(done.stdout)
    assert report["accelerators"] == 1024 and "1,024 accelerators, simulated" in call("report", out).stdout
    assert report["goodput"] == said["goodput"] and {"losses_s", "restarts", "detection_s", "recovery_s"} <= set(report)
    assert report["productive_s"] + sum(report["losses_s"].values()) == pytest.approx(report["elapsed_s"])
    theirs = report["ml_goodput_measurement"]
    assert theirs["goodput_time"]["TOTAL"] == report["productive_s"]
    assert theirs["badput_time"]["WASTED_PROGRESS_FROM_DISRUPTION"] == report["losses_s"]["replayed"] > 0
    whole = theirs["goodput_time"]["TOTAL"] + sum(theirs["badput_time"].values())
    assert whole == pytest.approx(theirs["total_elapsed_time"])
    assert "<svg" in (tmp_path / "timeline.svg").read_text()

    done = call("limits", "--accelerators", 10240, "--mtbf-accelerator-hours", 50000, "--goal", 0.98, "--json")
    assert json.loads(done.stdout)["frontier"][0]["checkpoint_block_s"] > 0
    asked = ("--recovery-s", 10, "--recovery-s", 36000)  # the second is longer than the goal allows
    done = call("limits", "--accelerators", 10240, "--mtbf-accelerator-hours", 50000, *asked, "--json")
    first, second = json.loads(done.stdout)["frontier"]
    assert (first["recovery_s"], second["recovery_s"]) == (10, 36000)
    assert first["checkpoint_block_s"] > 0 and second["checkpoint_block_s"] is None
    shown = call("limits", "--accelerators", 10240, "--mtbf-accelerator-hours", 50000, *asked).stdout
    assert "nothing" in shown and "10.0 h" in shown

    yaml = tmp_path / "cluster.yaml"
    yaml.write_text("accelerators: 64\nmtbf_accelerator_hours: 100\nrecovery_s: 60\ntiers:\n  - {interval_s: 300}\n")
    wrong = call("simulate", "--cluster", yaml, "--out", tmp_path / "other.jsonl")
    assert isinstance(wrong.exception, UsageError) and "cluster.yaml:5" in str(wrong.exception)
    doubled = call("simulate", "--cluster", yaml, "--accelerators", 3, "--out", tmp_path / "other.jsonl")
    assert "leave the option out" in str(doubled.exception)
    for text in ("0", "often", "-1"):
        refused = call("simulate", *numbers, "--checkpoint-block-s", 5, "--checkpoint-interval-s", text, "--out", "x")
        assert "must be a positive number of seconds, or best" in str(refused.exception)
