"""Stages: nothing lost or doubled after a kill at any write, a stale or changed folder refused, bounded memory."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import Message
from armillary.post import Item, Stage, StageSpec, open_stage, read_items, read_record, stage, to_line
from armillary.recipe import ArmillaryError, BusyError, DamagedFileError, ForeignFileError, UsageError

NUMBERS = range(7)


def numbered(number: int) -> Item:
    return Item((Message("user", f"{number}+{number}=?"),), str(2 * number), {"kind": "math"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_bytes(b"".join(to_line(numbered(number).to_json()) for number in (*NUMBERS, 3, 3)))
    return path


def spec(source: Path, **settings: Any) -> StageSpec:
    return StageSpec("double", {"seed": 1, **settings}, {"items": source})


def run(out: Path, source: Path, most: int = 99) -> dict[str, Any]:
    """Keeps two items for each even number and drops the odd ones."""
    with open_stage(out, spec(source)) as opened:
        for item in opened.pending(read_items(source)):
            if opened.decisions == most:
                return {}
            if int(item.answer or 0) % 4:
                opened.drop(item.id, "odd", {"answer": item.answer})
            else:
                opened.keep(item.id, [item.with_reply("a"), item.with_reply("b")])
        return opened.finish({"noted": 5})


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != ".lock"}


def test_every_input_is_decided_once(tmp_path: Path, source: Path) -> None:
    record = run(tmp_path / "out", source)
    assert record["counts"] == {"decided": 7, "kept": 8, "dropped": {"odd": 3}, "duplicates": 2, "noted": 5}
    assert sorted(files(tmp_path / "out")) == ["dropped.jsonl", "items.jsonl", "record.json", "stage.json"]
    assert [item.text for item in read_items(tmp_path / "out/items.jsonl")][::2] == [f"{n}+{n}=?" for n in (0, 2, 4, 6)]
    (edge,) = record["edges"]
    assert edge[0] == f"data:{record['files']['items.jsonl']}" and edge[2] == f"data:{record['inputs']['items']}"


def test_a_finished_stage_does_nothing(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run(out, source)
    before = files(out)
    with open_stage(out, spec(source)) as opened:
        assert opened.finished and opened.kept == 8 and opened.dropped == {"odd": 3}
        assert opened.finish() == opened.record == read_record(out)
        with pytest.raises(RuntimeError, match="has finished"):
            opened.drop("late", "late")
    assert files(out) == before


def killed_at(write: int, out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs in a child that kills itself in the middle of its ``write``-th write to a file; False if it came through."""
    child = os.fork()
    if child == 0:
        real, seen = os.write, 0

        def dying(descriptor: int, data: Any) -> int:
            nonlocal seen
            seen += 1
            if seen == write:
                real(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", dying)
        try:
            run(out, source)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_write_nothing_is_lost_or_doubled(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", source)
    write = 1
    while killed_at(write, tmp_path / f"out-{write}", source, monkeypatch):
        # Killed again while it resumes.
        killed_at(3, tmp_path / f"out-{write}", source, monkeypatch)
        run(tmp_path / f"out-{write}", source)
        assert files(tmp_path / f"out-{write}") == files(tmp_path / "whole")
        write += 1
    assert write == 15  # seven decisions of two writes each


def test_killed_before_and_after_the_record(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", source)
    for place, name in enumerate(("write_sealed", "read_record")):
        out = tmp_path / f"out-{place}"
        run(out, source, most=6)
        with monkeypatch.context() as patch:

            def stop(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(stage, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(out, source)
        run(out, source)
        assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["items.jsonl", "dropped.jsonl", "decided.jsonl"])
def test_what_a_power_failure_left_is_cut(tmp_path: Path, source: Path, name: str) -> None:
    """Files are flushed apart: any of them may be shorter than the journal says, or end in zeros."""
    run(tmp_path / "whole", source)
    for keep in (0, 10, 200):
        out = tmp_path / f"out-{keep}"
        run(out, source, most=5)
        data = (out / name).read_bytes()[:keep]
        (out / name).write_bytes(data + b"\0" * 20 * (name == "decided.jsonl"))
        run(out, source)
        assert files(out) == files(tmp_path / "whole")


def test_other_settings_inputs_or_stage_are_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run(out, source, most=3)
    with pytest.raises(UsageError, match=r"\(seed was 1 and is 2\); give another folder, or remove"):
        open_stage(out, spec(source, seed=2)).__enter__()
    with pytest.raises(UsageError, match="belongs to the stage double, not to evolve"):
        open_stage(out, StageSpec("evolve")).__enter__()
    source.write_bytes(source.read_bytes() + to_line(numbered(9).to_json()))
    with pytest.raises(UsageError, match=r"input items was .* and is"):
        run(out, source)
    with pytest.raises(UsageError, match="No such file"):
        open_stage(out, spec(tmp_path / "none")).__enter__()


def test_files_of_others_are_left(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "items.jsonl").write_text("mine\n")
    with pytest.raises(ForeignFileError, match="was not changed"):
        run(out, source)
    assert files(out) == {"items.jsonl": b"mine\n"}


def test_changed_and_newer_records_are_refused(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run(out, source)
    items = (out / "items.jsonl").read_bytes()
    (out / "items.jsonl").write_bytes(items[:-30])
    with pytest.raises(DamagedFileError, match=r"items\.jsonl: is not what the stage wrote"):
        run(out, source)
    (out / "items.jsonl").write_bytes(items)
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(ForeignFileError, match="format 99"):
        run(out, source)
    (out / "record.json").write_text(json.dumps({**record, "counts": {}}))
    with pytest.raises(DamagedFileError, match="checksum"):
        run(out, source)
    (out / "record.json").unlink()
    with pytest.raises(UsageError, match="contains no finished stage"):
        read_record(out)


def test_a_second_process_is_refused(tmp_path: Path, source: Path) -> None:
    with open_stage(tmp_path / "out", spec(source)):
        child = os.fork()
        if child == 0:
            try:
                open_stage(tmp_path / "out", spec(source)).__enter__()
            except BusyError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_full_disk_loses_nothing(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", source)
    out, real, written = tmp_path / "out", os.write, 0

    def full(descriptor: int, data: Any) -> int:
        nonlocal written
        if written > 1500:
            raise OSError(28, "No space left on device")
        written += real(descriptor, data[:100])  # a nearly full disk writes less than it was given
        return min(len(data), 100)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ArmillaryError, match="No space left on device; all decisions so far are kept"):
            run(out, source)
    with open_stage(out, spec(source)) as opened:
        assert opened.decisions > 0
    run(out, source)
    assert files(out) == files(tmp_path / "whole")


def test_forgotten_and_doubled_decisions_are_faults(tmp_path: Path, source: Path) -> None:
    with open_stage(tmp_path / "out", spec(source)) as opened:
        first, *_ = opened.pending(read_items(source))
        opened.drop(first.id, "odd")
        with pytest.raises(RuntimeError, match="decided twice"):
            opened.keep(first.id, first)
        with pytest.raises(RuntimeError, match="6 items of its input are undecided"):
            opened.finish()


def test_many_sources_are_told_apart() -> None:
    keys = stage.Keys()
    names = [str(number) for number in range(90_000)]
    for name in names:
        keys.add(name)
    assert all(name in keys for name in names)
    assert not any(f"{name}x" in keys for name in names[:1000])


@pytest.mark.slow
def test_a_million_items_in_bounded_memory(tmp_path: Path) -> None:
    """Two passes, the second after a stop in the middle, under a limit of 96 MiB above what the imports need."""
    source, count = tmp_path / "source.jsonl", 1_000_000
    with open(source, "wb") as file:
        for number in range(count):
            file.write(to_line(numbered(number).to_json()))

    def work(opened: Stage) -> Iterator[int]:
        for number, item in enumerate(opened.pending(read_items(source))):
            if number % 3:
                opened.keep(item.id, item)
            else:
                opened.drop(item.id, "third")
            yield number

    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open_stage(tmp_path / "out", spec(source)) as opened:
            for number in work(opened):
                if number == count // 2:
                    break
        with open_stage(tmp_path / "out", spec(source)) as opened:
            for _ in work(opened):
                pass
            opened.finish()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        print(f"grown by {grown} MiB")
        os._exit(0 if grown < 96 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    counts = read_record(tmp_path / "out")["counts"]
    assert counts["decided"] == count and counts["kept"] + sum(counts["dropped"].values()) == count
