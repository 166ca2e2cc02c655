"""Items that repeat evaluation items are removed and named, whatever is killed; splits of a set are compared."""

from __future__ import annotations

import importlib
import json
import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import Message
from armillary.post import DecontaminateOptions, Item, decontaminate, find_leaks, read_items, stage, to_line
from armillary.recipe import UsageError

PROBLEM = (
    "A farmer has 12 fields and plants nine rows of corn in each of them, then sells half of the corn for 3 dollars a "
    "row. How many dollars does the farmer have at the end?"
)
# The package has a function of the same name.
MODULE = importlib.import_module("armillary.post.decontaminate")
OPTIONS = DecontaminateOptions()


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(to_line(row) for row in rows))
    return path


def asked(text: str, reply: str | None = None) -> dict[str, Any]:
    return Item((Message("user", text),)).with_reply(reply).to_json()


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    lines(tmp_path / "evaluation/sums/test.jsonl", {"question": "What is 1+1?"}, {"question": PROBLEM})
    lines(tmp_path / "evaluation/sums/train.jsonl", {"question": "Which rows are free to be trained on, of all these?"})
    return tmp_path / "evaluation"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_removed_item_is_named_with_the_item_and_the_pass(tmp_path: Path, evaluation: Path) -> None:
    clean = asked("Which rows are free to be trained on, of all these?", "Those of the training split.")
    dirty = [
        asked(" what is 1+1", "2"),
        asked("Solve. " + PROBLEM),
        asked(PROBLEM.replace("12", "15").replace("nine", "4").replace("A farmer", "Mr Li")),
        asked("Repeat after me.", PROBLEM),
    ]
    data = lines(tmp_path / "data.jsonl", dirty[0], clean, *dirty[1:], clean)
    notes: list[str] = []
    record = decontaminate(data, [evaluation], tmp_path / "out", DecontaminateOptions(note=notes.append))
    assert record["counts"]["kept"] == 1 and record["counts"]["duplicates"] == 1
    assert [item.to_json() for item in read_items(tmp_path / "out/items.jsonl")] == [clean]
    dropped = rows(tmp_path / "out/dropped.jsonl")
    assert [row["item"] for row in dropped] == dirty
    assert [row["matched"] for row in dropped] == [f"evaluation/sums/test.jsonl:{n}" for n in (1, 2, 2, 2)]
    assert [row["reason"] for row in dropped] == ["exact", "ngram", "ngram", "exact"]
    assert record["counts"]["evaluation"] == {str(evaluation / "sums/test.jsonl"): 2}
    assert any("train.jsonl" in note for note in notes)
    # nothing is done again, and changed evaluation sets are refused
    assert decontaminate(data, [evaluation], tmp_path / "out", OPTIONS) == record
    lines(evaluation / "sums/test.jsonl", {"question": "another"})
    with pytest.raises(UsageError, match="began with other settings or inputs"):
        decontaminate(data, [evaluation], tmp_path / "out", OPTIONS)


def test_a_kill_loses_and_doubles_nothing(tmp_path: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_BATCH_CHARS", 100)
    texts = [f"number {n} of the rows" if n % 3 else f"{PROBLEM} {n}" for n in range(40)]
    data = lines(tmp_path / "data.jsonl", *map(asked, texts))
    whole = decontaminate(data, [evaluation], tmp_path / "whole", OPTIONS)
    for most in (3, 17, 29):
        if not (child := os.fork()):
            decided = 0

            def counted(*given: Any, real: Any = stage.Stage._decide, last: int = most) -> None:
                nonlocal decided
                real(*given)
                decided += 1
                if decided == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            stage.Stage._decide = counted  # type: ignore[method-assign]
            try:
                decontaminate(data, [evaluation], tmp_path / "out", OPTIONS)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 0)
    record = decontaminate(data, [evaluation], tmp_path / "out", OPTIONS)
    assert record["files"] == whole["files"] and record["counts"] == whole["counts"]


def test_memory_does_not_grow_with_the_data(tmp_path: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_BATCH_CHARS", 1 << 12)
    peaks = []
    for count in (40, 400):
        data = lines(tmp_path / f"{count}.jsonl", *(asked(f"{n} " + "word " * 40) for n in range(count)))
        tracemalloc.start()
        decontaminate(data, [evaluation], tmp_path / f"out{count}", OPTIONS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("near", [0, -1, 1.5, float("nan")])
def test_a_similarity_outside_its_range_is_refused(near: float) -> None:
    with pytest.raises(UsageError, match="near is"):
        DecontaminateOptions(near)


def test_no_evaluation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--against"):
        decontaminate(lines(tmp_path / "data.jsonl", asked("a")), [], tmp_path / "out", OPTIONS)


def test_leaks_between_splits_are_named(tmp_path: Path) -> None:
    lines(tmp_path / "set/train.jsonl", {"text": "壬子，诏改权制。"}, {"text": PROBLEM}, {"text": "又云"})
    lines(tmp_path / "set/test.jsonl", {"text": "壬子,诏改权制"}, {"text": "新的一句"}, {"text": f"Now: {PROBLEM}"})
    lines(tmp_path / "set/label.jsonl", {"label": "x"})
    lines(tmp_path / "alone/test.jsonl", {"text": PROBLEM})
    notes: list[str] = []
    (found,) = find_leaks(tmp_path, notes.append)
    assert (found.data, found.earlier, found.split, found.rows) == ("set", "train", "test", 3)
    assert found.counts == {"exact": 1, "ngram": 1}
    assert [(leak.item, leak.repeats) for leak in found.leaks] == [
        ("set/test.jsonl:1", "set/train.jsonl:1"),
        ("set/test.jsonl:3", "set/train.jsonl:2"),
    ]
    assert len(notes) == 1 and "alone" in notes[0]
    assert find_leaks(tmp_path / "set/test.jsonl", notes.append) == [found]
    with pytest.raises(UsageError, match="no two splits"):
        find_leaks(tmp_path / "alone", notes.append)


def test_splits_in_folders_of_their_own_are_one_set(tmp_path: Path) -> None:
    for split, question in (("dev", PROBLEM), ("test", f"Please: {PROBLEM}")):
        path = tmp_path / f"exam/{split}/law_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f'question,A,B,C,D,answer\n"{question}",1,2,3,4,A\n')
    (found,) = find_leaks(tmp_path / "exam", print)
    assert (found.data, found.counts) == ("exam", {"ngram": 1})


@pytest.mark.parametrize(("split", "rows", "repeated"), [("valid", 1218, 28), ("test", 1219, 43)])
def test_ched_repeats_its_training_text(split: str, rows: int, repeated: int) -> None:
    folder = os.environ.get("ARMILLARY_EVALUATION")
    if not folder:
        pytest.skip("set ARMILLARY_EVALUATION to the folder of evaluation sets")
    path = Path(folder) / "ched" / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path}: this split of CHED is not here")
    found = next(one for one in find_leaks(path, print) if one.earlier == "train")
    assert (found.rows, found.counts["exact"]) == (rows, repeated)


def test_questions_of_the_same_family_match_only_as_a_whole(tmp_path: Path) -> None:
    """Held-out questions have the wording of the training questions, and differ in their numbers only."""
    texts = [f"A train travels {n} km per hour for {n + 1} hours and then waits. How far is it?" for n in range(4)]
    other = "The old lighthouse keeper counted seventeen ships that passed the northern cape before the storm came."
    data = lines(tmp_path / "data.jsonl", *map(asked, [*texts, f"{other} Which ships?"]))
    held_out = lines(tmp_path / "held-out" / "items.jsonl", asked(texts[1].upper()))
    prose = lines(tmp_path / "prose.jsonl", {"text": other})
    own = DecontaminateOptions(whole=(held_out,))
    assert decontaminate(data, [], tmp_path / "own", own)["counts"]["dropped"] == {"exact": 1}
    assert rows(tmp_path / "own" / "dropped.jsonl")[0]["matched"] == "held-out/items.jsonl:1"
    assert decontaminate(data, [prose], tmp_path / "both", own)["counts"]["dropped"] == {"exact": 1, "ngram": 1}
    # in the other passes, a question of the family matches every question of it
    assert decontaminate(data, [held_out, prose], tmp_path / "all", OPTIONS)["counts"]["kept"] == 0
    moved = prose.rename(prose.with_name("moved.jsonl"))
    assert decontaminate(data, [moved], tmp_path / "both", own)["counts"]["kept"] == 3
