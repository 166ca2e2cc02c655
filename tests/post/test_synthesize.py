"""Synthesis: computed answers, a teacher that is never believed, splits without overlap, and kills at any write."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import BackendOptions, Choice, EndpointOptions, open_backend
from armillary.post import read_items
from armillary.post.problems import family_names
from armillary.post.synthesize import SynthesisOptions, rewritten, synthesize
from armillary.post.verify import verify
from armillary.recipe import UsageError

FEW = ("tally", "conversion")


class Teacher(BaseHTTPRequestHandler):
    """A server that rewrites: well, not at all, with another number, with the answer, or not to be understood."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = re.split("Question: |题目：", body["messages"][-1]["content"])[-1].rpartition("\n")[0]
        text = [
            lambda: re.sub(r"^", "Please: " if question.isascii() else "请问：", question),
            lambda: question,
            lambda: re.sub(r"\d+", "3", question),
            lambda: f"{question} The answer is 5.",
            lambda: (
                ("Numbers: " if question.isascii() else "数字？") + " and ".join(re.findall(r"[\d.]+\d|\d", question))
            ),
        ][sum(map(ord, question)) % 5]()
        answer = {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the one that asked was killed
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def taught(out: Path, url: str, n: int) -> tuple[dict[str, Any], int]:
    """The record, and how many questions were asked."""
    backend = open_backend(url, BackendOptions(endpoint=EndpointOptions(model="m", api="chat", retries=0)))
    try:
        return synthesize(out, SynthesisOptions(n, FEW), backend), backend.cost.prompt_tokens // 9
    finally:
        backend.close()


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def test_every_item_is_training_data_with_a_verified_answer(tmp_path: Path) -> None:
    options = SynthesisOptions(2 * 3 * len(family_names()))
    record = synthesize(tmp_path / "out", options)
    items = list(read_items(tmp_path / "out/items.jsonl"))
    assert len(items) == record["counts"]["kept"] == options.n and not record["counts"]["dropped"]
    assert record["counts"]["by"]["family"] == dict.fromkeys(family_names(), 6)
    assert record["counts"]["by"]["language"] == {"en": options.n // 2, "zh": options.n // 2}
    assert record["counts"]["verified"]["of"] == options.n and record["counts"]["verified"]["low"] < 1
    assert len({item.text for item in items}) == len(items)
    assert all(item.domain == "code" or verify(item, item.reply).outcome == "right" for item in items)
    synthesize(tmp_path / "again", options)
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_train_and_held_out_share_no_problem(tmp_path: Path) -> None:
    texts = {}
    for split in ("train", "held-out"):
        synthesize(tmp_path / split, SynthesisOptions(300, ("tally", "linear", "calendar"), split=split, held_out=0.2))
        texts[split] = {item.text for item in read_items(tmp_path / split / "items.jsonl")}
        assert len(texts[split]) == 300
    assert not texts["train"] & texts["held-out"]


def test_a_family_without_more_problems_says_so(tmp_path: Path) -> None:
    options = SynthesisOptions(400, ("calendar",), ("en",), (1,), split="held-out")
    counts = synthesize(tmp_path / "out", options)["counts"]
    assert counts["kept"] + counts["dropped"]["no new problem"] == 400
    assert counts["verified"]["of"] == counts["kept"]


def test_a_teacher_is_not_believed(tmp_path: Path, url: str) -> None:
    record, asked = taught(tmp_path / "out", url, 80)
    assert asked == 80
    dropped = record["counts"]["dropped"]
    assert sum(dropped.values()) + record["counts"]["kept"] == 80
    assert {"rewriting changed nothing", "rewriting changed the numbers"} <= dropped.keys()
    assert {"rewriting holds the instruction or an answer", "rewriting is not understood"} <= dropped.keys()
    items = list(read_items(tmp_path / "out/items.jsonl"))
    assert items and all(item.text.startswith(("Please: ", "请问：")) for item in items)
    for item in items:
        assert verify(item, item.reply).outcome == "right"
        assert item.origin["wording"] == "teacher" and len(item.origin["parents"]) == 1
    rows = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert all(row["item"]["messages"] and row["rewriting"] for row in rows)


def dies_at(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process kills itself in the middle of its ``write``-th write to a file of the stage."""
    real, seen = os.write, 0

    def dying(descriptor: int, data: Any) -> int:
        nonlocal seen
        # Sockets write as well.
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".jsonl":
            seen += 1
            if seen == write:
                real(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", dying)


@pytest.mark.parametrize(
    "writes", [(5, 18, 33), pytest.param(range(1, 100), marks=pytest.mark.slow)], ids=["a few", "all"]
)
def test_killed_at_any_write_nothing_is_lost_doubled_or_asked_twice(
    writes: Sequence[int], tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "whole", url, 12)
    for write in writes:
        out = tmp_path / f"out-{write}"
        child = os.fork()
        if child == 0:
            dies_at(write, monkeypatch)
            try:
                taught(out, url, 12)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        kept = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
        answered = sum(line.endswith(b"\n") for line in kept[1:])
        assert taught(out, url, 12)[1] == 12 - answered
        for name in ("items.jsonl", "dropped.jsonl", "record.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        if not killed:
            break
    assert len(writes) == 3 or 30 < write < 100


@pytest.mark.parametrize(
    ("text", "finish", "found"),
    [
        ("Ann had 5 apples at first. She bought 3 more. How many apples does Ann have now?", "stop", None),
        ('"Ann had 5 apples at first. She bought 3 more. How many apples does Ann have now?"\n', "stop", None),
        ("Ann had 5 apples at first.", "length", "rewriting was cut"),
        (" \n", "stop", "rewriting is empty"),
        ("ann has 5 apples Ann buys 3 more. How many apples does Ann have now", "stop", "rewriting changed nothing"),
        ("Ann had 5 apples at first. She bought 3 more.", "stop", "rewriting asks nothing"),
        ("To find the apples, you would add 5 and 3 and divide by 1.", "stop", "rewriting asks nothing"),
        ("安有5个苹果，又买了3个。安现在有几个苹果？", "stop", "rewriting changed the language"),
        ("Ann had 5 apples and bought 4. How many has she now?", "stop", "rewriting changed the numbers"),
        ("How many are 5 and 3? The answer is 8.", "stop", "rewriting holds the instruction or an answer"),
        ("Ann had 5 apples, 3 of them red. How many apples does Ann have now?", "stop", "rewriting is not understood"),
        ("Ann had 5 apples. Ann lost 3. How many apples does Ann have now?", "stop", "rewriting changed the answer"),
    ],
)
def test_a_rewriting_is_kept_or_dropped_with_a_reason(text: str, finish: Any, found: str | None) -> None:
    from armillary.generate import Message
    from armillary.post import Item

    messages = (
        Message("user", "Ann has 5 apples. Ann buys 3 more. How many apples does Ann have now?"),
        Message("assistant", "5 + 3 = 8\nThe answer is 8."),
    )
    item = Item(messages, "8", {"kind": "math"}, "math", "tally", 1, "en")
    kept = rewritten(item, Choice(text, 20, finish))
    assert (kept if isinstance(kept, str) else None) == found
    if not isinstance(kept, str):
        assert kept.text == text.strip().strip('"') and kept.reply == item.reply and kept.id != item.id


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n": 0}, "n: must be 1 or more"),
        ({"families": ("taly",)}, "no family 'taly'; nearest: 'tally'"),
        ({"languages": ("fr",)}, "languages: must be out of zh, en"),
        ({"levels": (4,)}, "levels: must be from 1 to 3"),
        ({"split": "test"}, "split: must be one of all, train, held-out"),
        ({"held_out": 1.0}, "held-out: must be between 0 and 1"),
    ],
)
def test_options_out_of_range_are_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        SynthesisOptions(**{"n": 5, **changes})


@pytest.mark.slow
def test_tasks_of_reasoning_gym(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    options = SynthesisOptions(30, ("gym:chain_sum", "gym:knights_knaves", "gym:mini_sudoku"))
    counts = synthesize(tmp_path / "out", options)["counts"]
    assert counts["kept"] == 30 and counts["by"]["language"] == {"en": 30}
    with pytest.raises(UsageError, match="no data set 'chainsum'"):
        synthesize(tmp_path / "other", SynthesisOptions(3, ("gym:chainsum",)))
