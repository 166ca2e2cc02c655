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


def test_a_checkpoint_costs_what_training_waited_for_it():
    """It begins, training continues, its files are durable: in this order, or with the last two swapped."""
    begin = event(10, "checkpoint_begin", 10, of="snapshot")
    durable = event(10.9, "checkpoint_durable", 10, of="snapshot", written_s=4.0)
    for blocked, late in ((event(11, "snapshot", 10, 1.0), 21.0), (event(11, "checkpoint", 10, 0.9), 10.9)):
        events = [
            event(0, "start"),
            event(10, "progress", 10, 10.0),
            begin,
            blocked,
            event(21, "progress", 20, 10.0),
            durable.model_copy(update={"time_s": late}),
            event(21, "end", 20),
        ]
        found = ledger({0: sorted(events, key=lambda e: e.time_s)})
        assert (found.seconds["productive"], found.seconds["checkpoint"], found.seconds["other"]) == (20.0, 1.0, 0.0)


def test_a_rank_that_is_killed_within_a_checkpoint_lost_no_step_by_it():
    events = [event(0, "start"), event(10, "progress", 10, 10.0), event(10, "checkpoint_begin", 10, of="checkpoint")]
    ends = {
        "fault": [event(12, "fault", 10), event(13, "detected", 10), event(20, "resume", 10)],
        "detected": [event(13, "detected", 10), event(20, "resume", 10)],
        "resume": [event(20, "resume", 10)],
    }
    expected = {
        "fault": {"checkpoint": 2.0, "detection": 1.0, "restart": 7.0},
        "detected": {"detection": 3.0, "restart": 7.0},
        "resume": {"restart": 10.0},
    }
    for kind, end in ends.items():
        found = ledger({0: [*events, *end, event(30, "progress", 20, 10.0)]})
        lost = {account: value for account, value in found.seconds.items() if value and account != "productive"}
        assert (found.seconds["productive"], lost) == (20.0, expected[kind]), kind


SECONDS = st.integers(1, 50)
PARTS = st.one_of(
    st.tuples(st.just("productive"), SECONDS),
    st.tuples(st.just("data_wait"), SECONDS),
    st.tuples(st.just("checkpoint"), SECONDS),
    st.tuples(st.just("evaluation"), SECONDS),
    st.tuples(st.just("paused"), SECONDS),
)


@given(st.lists(PARTS, min_size=1, max_size=20), st.booleans())
def test_every_second_of_an_orderly_run_has_its_account(parts, background):
    """Steps of a second, waits for batches, checkpoints in the background or not, validations, stops."""
    now, step, events = 0, 0, [event(0, "start")]
    for account, seconds in parts:
        begun, now = now, now + seconds
        if account == "productive":
            step += seconds
            events.append(event(now, "progress", step, float(seconds)))
        elif account == "data_wait":  # one long wait within a step
            events.append(event(now, "data_wait", step, float(seconds)))
            now, step = now + 1, step + 1
            events.append(event(now, "progress", step, seconds + 1.0))
        elif account == "checkpoint":
            durable = event(begun if background else now, "checkpoint_durable", step, of="checkpoint")
            events += [event(begun, "checkpoint_begin", step, of="checkpoint"), durable,
                       event(now, "checkpoint", step, float(seconds))]  # fmt: skip
        elif account == "evaluation":
            events.append(event(now, "validation", step, float(seconds)))
        else:
            events += [event(begun, "stop", step, 0.0), event(now, "pause", step, float(seconds)),
                       event(now, "resume", step)]  # fmt: skip
    events.append(event(now, "end", step, 0.0))
    expected = dict.fromkeys(ACCOUNTS, 0.0)
    for account, seconds in parts:
        expected[account] += seconds
        expected["productive"] += account == "data_wait"
    assert ledger({0: events}).seconds == expected


def test_after_a_pause_the_run_restarts():
    events = [event(0, "start"), event(10, "progress", 10, 10.0), event(11, "stop", 10, 1.0),
              event(50, "pause", 10, 39.0), event(53, "resume", 10), event(63, "progress", 20, 10.0)]  # fmt: skip
    found = ledger({0: events})
    assert (found.seconds["paused"], found.seconds["restart"], found.seconds["productive"]) == (39.0, 3.0, 20.0)


def test_a_checkpoint_as_earlier_versions_reported_it():
    """Twice: when training continues, with the time it waited, and when the files are durable."""
    events = [
        event(0, "start"),
        event(10, "progress", 10, 10.0),
        event(11, "checkpoint_begin", 10, 1.0, of="checkpoint"),
        event(21, "progress", 20, 10.0),
        event(21, "checkpoint", 10, blocked_s=1.0, written_s=4.0),
        event(23, "end", 20, 2.0),
    ]
    found = ledger({0: events})
    assert (found.seconds["productive"], found.seconds["checkpoint"], found.seconds["other"]) == (20.0, 3.0, 0.0)


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
    with pytest.raises(UsageError, match=r"has no events\.jsonl"):
        read_ledger(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_ledger(tmp_path / "none.jsonl")
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(UsageError, match="has no events yet"):
        read_ledger(tmp_path)


def attempt(rank, time_s, kind, first, last, ranks):
    """An attempt of a rank with a step each second."""
    begin = event(time_s, kind, first, rank=rank, ranks=ranks)
    return [begin, event(time_s + last - first, "progress", last, float(last - first), rank=rank)]


def test_a_rank_counts_in_the_attempts_that_have_it():
    """Two ranks, then one of them: its file is left over and waits for nothing."""
    first = [*attempt(0, 0, "start", 0, 10, 2), event(10, "detected", 10), *attempt(0, 12, "resume", 10, 30, 1)]
    second = attempt(1, 0, "start", 0, 10, 2)
    found = ledger({0: first, 1: second})
    assert found.seconds["productive"] == 30.0 and found.seconds["restart"] == 2.0
    assert sum(found.seconds.values()) == pytest.approx(found.elapsed_s) == 32.0
    assert found.spans[1][-1].end_ns == 12_000_000_000
    # and the other way round: what came later has not waited since the beginning
    later = ledger({0: [*attempt(0, 0, "start", 0, 10, 1), *attempt(0, 12, "resume", 10, 30, 2)],
                    1: attempt(1, 12, "resume", 10, 30, 2)})  # fmt: skip
    assert later.seconds["productive"] == 30.0 and later.spans[1][0].begin_ns == 12_000_000_000


def test_steps_with_fewer_ranks_are_slow_against_those_with_all():
    slow = [event(10 + 3 * n, "progress", 10 + n, 3.0) for n in range(1, 41)]
    events = [event(0, "start", ranks=4), event(10, "progress", 10, 10.0), event(10, "detected", 10),
              event(10, "degraded", 10, ranks=2), event(10, "resume", 10, ranks=2), *slow]  # fmt: skip
    found = ledger({0: events})
    assert found.seconds["degraded"] == pytest.approx(40 * 1.9)
    again = [event(130, "stop", 50), event(130, "resume", 50, ranks=4), event(140, "progress", 60, 10.0)]
    assert ledger({0: [*events, *again]}).seconds["degraded"] == pytest.approx(40 * 1.9)


@given(st.dictionaries(st.integers(0, 3), STREAMS, min_size=1), st.lists(st.integers(1, 5), min_size=1))
def test_attempts_of_any_size_sum_to_the_elapsed_time(streams, sizes):
    chosen = itertools.cycle(sizes)
    sized = {
        rank: [e.model_copy(update={"data": {**e.data, "ranks": next(chosen)}}) for e in events]
        for rank, events in streams.items()
    }
    found = ledger(sized)
    assert sum(found.seconds.values()) == pytest.approx(found.elapsed_s, abs=1e-6)


@given(st.dictionaries(st.integers(0, 3), STREAMS, min_size=1), st.data())
def test_torn_files_of_ranks_with_other_clocks_sum_too(tmp_path_factory, streams, data):
    """Ranks have different clocks; a kill cut off the files, and the next attempt continued them."""
    folder = tmp_path_factory.mktemp("run")
    kept = 0
    for rank, events in streams.items():
        ahead = data.draw(st.floats(-1e4, 1e4))
        text = "".join(e.model_copy(update={"time_s": e.time_s + ahead}).model_dump_json() + "\n" for e in events)
        cut = data.draw(st.integers(0, len(text)))
        path = folder / ("events.jsonl" if rank == 0 else f"events-{rank:05}.jsonl")
        path.write_text(text[:cut] + data.draw(st.sampled_from(["", "\n", "\n{}}\n", "\n\x00\x00"])))
        kept += len(list(read_events(path)))
    if kept == 0:
        with pytest.raises(UsageError, match="has no events"):
            read_ledger(folder)
        return
    found = read_ledger(folder)
    assert sum(found.seconds.values()) == pytest.approx(found.elapsed_s, abs=1e-6)
    assert all(value >= 0 for value in found.seconds.values())


LINE = {"format": 2, "minor": 0, "time_s": 5.0, "run": "r", "kind": "start", "step": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 3}, "event format 3 is newer"),
        ({"format": 0}, "format"),
        ({"minor": -1}, "minor"),
        ({"time_s": 1e300}, "time_s"),
        ({"step": 10**400}, "step"),
        ({"step": -1}, "step"),
        ({"duration_s": 1e301}, "duration_s"),
        ({"kind": "eclipse"}, "kind"),
        ({"moon": 1}, "moon"),
        ({"data": []}, "data"),
    ],
)
def test_a_line_that_is_no_event_is_named(change, said, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises((DamagedFileError, ForeignFileError), match=rf"events\.jsonl:2: .*{said}"):
        read_ledger(path)


def test_numbers_in_data_that_cannot_be_seconds_count_as_missing():
    """They come from other programs, and as whole or broken numbers of any size."""
    wild = {"data_wait_s": 1e308, "batches": 10**400, "ranks": 10**400, "silent_s": 1e308}
    events = [event(0, "start", **wild), event(4, "progress", 4, 4.0, **wild), event(4, "skipped", 4, **wild),
              event(5, "detected", 4, **wild), event(6, "degraded", 4, **wild)]  # fmt: skip
    found = ledger({0: events})
    assert found.seconds["productive"] == 4.0 and found.skipped_batches == 1 and found.detection_s == (0.0,)


def test_a_name_that_is_used_again_continues_the_ledger(tmp_path):
    """A run that was removed and started anew under its name, in the same file: all its steps were taken twice."""
    once = [event(0, "start"), event(10, "progress", 10, 10.0), event(10, "end", 10)]
    again = [e.model_copy(update={"time_s": e.time_s + 20}) for e in once]
    found = ledger({0: [*once, *again]})
    assert found.seconds["replayed"] == found.seconds["productive"] == found.seconds["paused"] == 10.0
    assert found.restarts == 1


def test_reports_of_odd_files(tmp_path):
    """One event, events of a newer minor version alone, and a file that is no text: a report or one line."""
    from typer.testing import CliRunner

    from armillary.cli.verbs import app

    def report(content):
        (tmp_path / "events.jsonl").write_bytes(content)
        call = ["goodput", "report", str(tmp_path / "events.jsonl"), "--svg", str(tmp_path / "timeline.svg")]
        return CliRunner().invoke(app, call)

    one = report(json.dumps(LINE).encode() + b"\n")
    assert one.exit_code == 0 and "goodput unknown" in one.output
    for content in (b"", b"\xff\xfe\x00binary\x00", json.dumps(LINE | {"minor": 9, "kind": "eclipse"}).encode()):
        assert "has no events" in str(report(content).exception)
    assert "not an event" in str(report(b"[]\n").exception)
    # a byte order mark, Windows line ends and blank lines are no damage
    two = json.dumps(LINE | {"time_s": 9.0, "kind": "end"})
    assert report(b"\xef\xbb\xbf" + f"{json.dumps(LINE)}\r\n\r\n{two}\r\n".encode()).exit_code == 0
