"""What was written is read again, and a kill in the middle of a line loses nothing but that line."""

import json
import math
import resource
import signal
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from armillary.goodput import EventWriter, first_start_s, read_events
from armillary.recipe import ArmillaryError

KINDS = ("start", "resume", "progress", "validation", "checkpoint", "stop", "fault", "end")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e300, 1e300), st.text())
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 10**9),
        st.one_of(st.none(), st.floats(0, 1e9)),
        st.dictionaries(st.text(min_size=1).filter(lambda k: k not in {"self", "kind", "step", "duration_s"}), VALUES),
    ),
    min_size=1,
    max_size=5,
)


def write(path, events):
    with EventWriter(path, "a run") as writer:
        for kind, step, duration_s, data in events:
            writer.write(kind, step, duration_s, **data)


def read(path):
    return [(event.kind, event.step, event.duration_s, event.data) for event in read_events(path)]


@given(EVENTS)
def test_round_trip(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    write(path, events)
    assert read(path) == events
    assert {(event.run, event.format, event.rank) for event in read_events(path)} == {("a run", 2, 0)}
    times = [event.time_s for event in read_events(path)]
    assert times == sorted(times) and all(map(math.isfinite, times))


@given(EVENTS, EVENTS, st.floats(0, 1, exclude_max=True))
def test_a_torn_last_line_costs_only_itself(tmp_path_factory, before, after, share):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    write(path, before)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    left = int(share * (last - 1))  # bytes of the last line that came to the disk; never the whole of it
    path.write_bytes(whole[: len(whole) - last + left])
    assert read(path) == before[:-1]
    write(path, after)  # the process that goes on
    assert read(path) == before[:-1] + after


def test_an_event_costs_a_few_microseconds(tmp_path):
    """The fastest of many batches, which the load of the machine hardly changes; 20 µs are allowed."""
    with EventWriter(tmp_path / "events.jsonl", "a run") as events:
        took = timeit.repeat(lambda: events.write("progress", 25, 1.25, loss=2.5), number=100, repeat=30)
    assert min(took) / 100 < 7e-6


@pytest.mark.parametrize(
    ("kind", "step", "duration_s"), [("eclipse", 1, 1.0), ("end", -1, 1.0), ("end", 1, -1.0), ("end", 1, math.nan)]
)
def test_no_line_is_written_that_no_reader_takes(kind, step, duration_s, tmp_path):
    with EventWriter(tmp_path / "events.jsonl", "a run") as events, pytest.raises(ValidationError):
        events.write(kind, step, duration_s)
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_a_value_that_is_no_number_is_written_as_none(tmp_path):
    write(tmp_path / "events.jsonl", [("progress", 3, 1.0, {"loss": math.inf, "text": "浑仪"})])
    assert read(tmp_path / "events.jsonl") == [("progress", 3, 1.0, {"loss": None, "text": "浑仪"})]


def test_a_full_disk_is_told_and_costs_the_event_alone(tmp_path):
    """Also one with room for a part of the line: the next writer begins a new line."""
    path = tmp_path / "events.jsonl"
    write(path, [("start", 0, None, {})])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ArmillaryError, match="could not be written"), EventWriter(path, "a run") as events:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
            events.write("progress", 1, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    write(path, [("end", 3, None, {})])
    assert read(path) == [("start", 0, None, {}), ("end", 3, None, {})]


def test_a_last_line_that_lacks_only_its_end_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, [("start", 0, None, {})])
    path.write_bytes(path.read_bytes()[:-1])
    write(path, [("end", 3, None, {})])
    assert read(path) == [("start", 0, None, {}), ("end", 3, None, {})]


def test_an_editors_byte_order_mark_and_line_ends_cost_no_event(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path, "r") as events:
        events.write("start", 0)
        events.write("end", 1)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [event.kind for event in read_events(path)] == ["start", "end"]


def test_torn_in_the_middle_by_two_kills(tmp_path):
    path = tmp_path / "events.jsonl"
    expected = []
    for attempt in range(3):
        event = ("progress", attempt, 0.5, {"note": "浑仪"})
        write(path, [event])
        expected.append(event)
        with open(path, "ab") as file:
            file.write('{"format":1,"time_s":1.0,"run":"浑'.encode()[:-1])  # torn within a character
    assert read(path) == expected


def test_an_event_is_with_the_system_before_write_returns(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl", "a run")
    writer.write("start", 0)
    assert read(tmp_path / "events.jsonl") == [("start", 0, None, {})]
    writer.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"format": 3, "time_s": 1, "run": "r", "kind": "start", "step": 0}, "format 3 is newer"),
        ({"format": 3, "time_s": 1, "run": "r", "kind": "eclipse", "step": 0, "moon": 1}, "format 3 is newer"),
        ({"time_s": 1, "run": "r", "kind": "eclipse", "step": 0}, "not an event: kind"),
        ({"time_s": 1, "run": "r", "kind": "start", "step": -1}, "not an event: step"),
        ([1, 2], "not an event"),
    ],
)
def test_a_whole_line_that_is_no_event_of_ours_is_refused_with_its_place(tmp_path, line, said):
    path = tmp_path / "events.jsonl"
    write(path, [("start", 0, None, {})])
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(ArmillaryError) as caught:
        list(read_events(path))
    assert f"{path}:2: " in str(caught.value) and said in str(caught.value)


def test_the_first_start_is_that_of_the_earliest_attempt(tmp_path):
    assert first_start_s(tmp_path) is None
    path = tmp_path / "events.jsonl"
    path.touch()
    assert first_start_s(tmp_path) is None
    write(path, [("start", 0, None, {}), ("progress", 5, 0.25, {"loss": 1.0}), ("start", 0, None, {})])
    lines = path.read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["time_s"] for line in lines]
    assert first_start_s(tmp_path) == times[0]
    path.write_text("\n".join([lines[0][:9], *lines[1:]]), encoding="utf-8")  # torn, then gone on with
    assert first_start_s(tmp_path) == times[2]
    path.write_text(lines[1], encoding="utf-8")  # no attempt is left whole: what is known is that it was no later
    assert first_start_s(tmp_path) == times[1] - 0.25
