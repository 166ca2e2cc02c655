"""Every moment of every rank has exactly one account, whatever the events are."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.goodput import ACCOUNTS, Event, ledger, read_events, read_ledger, simulate, write_events
from armillary.goodput.cluster import Cluster, Lemons, Repair, Stragglers, Tier
from armillary.goodput.events import KINDS
from armillary.recipe import DamagedFileError, ForeignFileError, UsageError


def event(time_s, kind, step=0, duration_s=None, rank=0, **data):
    return Event(time_s=time_s, run="r", kind=kind, step=step, duration_s=duration_s, rank=rank, data=data)


# Times jump forwards and backwards, durations overlap, kinds follow each other as they never should.
STREAMS = st.lists(
    st.builds(
        event,
        time_s=st.floats(1e9, 1e9 + 500),
        kind=st.sampled_from(KINDS),
        step=st.integers(0, 40),
        duration_s=st.one_of(st.none(), st.floats(0, 200)),
        data_wait_s=st.floats(0, 50),
    ),
    min_size=1,
    max_size=25,
)


@given(st.dictionaries(st.integers(0, 3), STREAMS, min_size=1), st.floats(1e9, 1e9 + 900))
def test_the_accounts_sum_to_the_elapsed_time(streams, until):
    found = ledger(streams, until)
    assert sum(found.seconds.values()) == pytest.approx(found.elapsed_s, abs=1e-6)
    for spans in found.spans.values():
        # no gap, no overlap, to the nanosecond
        assert all(a.end_ns == b.begin_ns for a, b in itertools.pairwise(spans))
        assert sum(span.end_ns - span.begin_ns for span in spans) == round(found.elapsed_s * 1e9)
    assert all(value >= 0 for value in found.seconds.values())
    assert json.dumps(found.to_json(), allow_nan=False)


CLUSTER = Cluster(
    accelerators=256,
    mtbf_accelerator_hours=400,
    recovery_s=120,
    tiers=(
        Tier(interval_s=60, block_s=0.2, read_s=5, survives=1),
        Tier(interval_s=600, block_s=8, read_s=60),
    ),
    spares=1,
    repair=Repair(median_s=1800, mean_s=9000),
    lemons=Lemons(share=0.1, times=8, removed_after=2),
    stragglers=Stragglers(mtbf_node_hours=300, slowdown=1.4, detection_s=300),
)


def test_steps_are_counted_once():
    """Of a simulated run: what is productive is the last step times its time, all else has a name."""
    found = ledger({0: (events := list(simulate(CLUSTER, 3, seed=1)))})
    last = events[-1].step
    assert found.seconds["productive"] == pytest.approx(last * CLUSTER.step_s, rel=0.002)
    assert {name for name in ACCOUNTS if found.seconds[name] > 0} >= {
        "productive", "degraded", "replayed", "checkpoint", "restart", "waiting",
    }  # fmt: skip
    assert found.seconds["other"] < 0.001 * found.elapsed_s
    assert found.faults == sum(e.kind == "fault" for e in events) > 10


def test_a_kill_replays_the_steps_after_the_checkpoint():
    events = [
        event(100.0, "start"),
        event(112.0, "progress", 10, 10.0),
        event(113.0, "checkpoint", 10, 1.0),
        event(123.0, "progress", 20, 10.0),
        event(126.0, "fault", 20, problem="rank 1 was killed"),
        event(128.0, "detected", 20),
        event(135.0, "resume", 10),
        event(136.0, "running", 11),
        event(145.0, "progress", 20, 10.0),
        event(145.5, "validation", 20, 0.5),
        event(145.5, "end", 20),
    ]
    found = ledger({0: events})
    assert found.seconds == {
        **dict.fromkeys(ACCOUNTS, 0.0),
        "start_up": 2.0,
        "productive": 20.0,
        "checkpoint": 1.0,
        "replayed": 13.0,  # ten steps, and three seconds that were never reported
        "detection": 2.0,
        "restart": 7.0,
        "evaluation": 0.5,
    }
    assert (found.replayed_steps, found.restarts, found.faults) == (10, 1, 1)
    assert (found.detection_s, found.recovery_s) == ((2.0,), (8.0,))
    assert found.goodput == pytest.approx(20 / 45.5)


def test_a_run_that_ended_without_a_word_was_down_until_it_resumed():
    events = [
        event(0, "start"),
        event(10, "progress", 10, 10.0),
        event(50, "resume", 5),
        event(55, "progress", 10, 5.0),
    ]
    found = ledger({0: events})
    assert (found.seconds["restart"], found.seconds["replayed"], found.seconds["productive"]) == (40.0, 5.0, 10.0)


def test_a_damaged_file_stops_no_step():
    events = [event(0, "start"), event(10, "progress", 10, 10.0), event(12, "fault", 10, checkpoint="step-10")]
    found = ledger({0: [*events, event(20, "progress", 20, 10.0)]})
    assert (found.seconds["productive"], found.seconds["detection"], found.detection_s) == (20.0, 0.0, ())


def test_slow_steps_and_waiting_for_data_are_no_productive_time():
    usual = [event(10.0 * n, "progress", 10 * n, 10.0) for n in range(1, 6)]
    slow = [event(80.0, "progress", 60, 30.0), event(92.0, "progress", 70, 12.0, data_wait_s=2.0)]
    found = ledger({0: [event(0, "start"), *usual, *slow]})
    assert found.seconds["degraded"] == pytest.approx(19.0)  # of 30 s, 11 are within 1.1 times the usual
    assert found.seconds["data_wait"] == pytest.approx(2.0)
    assert found.seconds["productive"] == pytest.approx(71.0)


def test_what_the_supervisor_saw_holds_for_a_rank_that_wrote_nothing():
    """Rank 1 is killed and writes nothing; its clock is three seconds ahead."""
    first = [event(0, "start"), event(10, "progress", 10, 10.0), event(12, "detected", 10), event(20, "resume", 10),
             event(30, "progress", 20, 10.0)]  # fmt: skip
    second = [event(3, "start"), event(13, "progress", 10, 10.0), event(23, "resume", 10),
              event(33, "progress", 20, 10.0)]  # fmt: skip
    found = ledger({0: first, 1: second})
    assert found.ranks == 2 and found.elapsed_s == 30.0
    assert sum(found.seconds.values()) == pytest.approx(30.0)
    assert found.seconds["productive"] == 20.0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated") / "events.jsonl"
    write_events(path, simulate(CLUSTER, 0.3, seed=3))
    return path


def test_a_file_that_was_cut_anywhere_costs_its_last_event_alone(simulated, tmp_path):
    data = simulated.read_bytes()
    rng = random.Random(0)
    for _ in range(10):
        cut = rng.randrange(200, len(data))
        (tmp_path / "events.jsonl").write_bytes(data[:cut])
        found = read_ledger(tmp_path)
        kept = list(read_events(tmp_path / "events.jsonl"))
        assert len(kept) in (data[:cut].count(b"\n"), data[:cut].count(b"\n") + 1)
        assert found.elapsed_s == pytest.approx(kept[-1].time_s)


def test_newer_minor_versions_add_and_newer_formats_are_refused(simulated, tmp_path):
    lines = simulated.read_text().splitlines()
    newer = {**json.loads(lines[0]), "minor": 7, "kind": "eclipse", "moon": 1}
    added = {**json.loads(lines[1]), "minor": 7, "moon": 1}
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join([lines[0], json.dumps(newer), json.dumps(added), *lines[2:]]) + "\n")
    assert read_ledger(path).to_json() == read_ledger(simulated).to_json()
    path.write_text(json.dumps({**newer, "format": 3}) + "\n")
    with pytest.raises(ForeignFileError, match=r"events\.jsonl:1: event format 3 is newer"):
        read_ledger(path)


def test_events_of_the_first_format_are_read(tmp_path):
    one = {
        "format": 1,
        "time_s": 5.0,
        "run": "r",
        "kind": "start",
        "step": 0,
        "rank": 0,
        "duration_s": None,
        "data": {},
    }
    two = {**one, "time_s": 9.0, "kind": "progress", "step": 4, "duration_s": 4.0}
    (tmp_path / "events.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(two)}\n")
    assert read_ledger(tmp_path).seconds["productive"] == 4.0


@pytest.mark.parametrize("wrong", ["x", None, -1, [1], float("nan")])
def test_values_that_are_no_numbers_count_as_missing(wrong):
    events = [event(0, "start"), event(4, "progress", 4, 4.0, data_wait_s=wrong), event(4, "skipped", 4, batches=wrong)]
    found = ledger({0: events})
    assert (found.seconds["productive"], found.seconds["data_wait"], found.skipped_batches) == (4.0, 0.0, 1)


def test_a_time_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"format": 2, "time_s": NaN, "run": "r", "kind": "start", "step": 0}\n')
    with pytest.raises(DamagedFileError, match=r"events\.jsonl:1: not an event"):
        read_ledger(path)


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"holds no events\.jsonl"):
        read_ledger(tmp_path)
    with pytest.raises(UsageError, match="there is no such file"):
        read_ledger(tmp_path / "none.jsonl")
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(UsageError, match="holds no event yet"):
        read_ledger(tmp_path)
