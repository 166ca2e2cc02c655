"""A model is examined on items: verdicts by verifiers, kept answers, and a folder that comparisons read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main
from armillary.evaluate import compare, read_examination
from armillary.generate import (
    BackendOptions,
    Choice,
    Completion,
    Cost,
    Message,
    Pair,
    Request,
    Sampling,
    open_backend,
)
from armillary.generate.backend import Backend
from armillary.post.examine import ExamineOptions, examine_items
from armillary.post.items import Item, to_line
from armillary.post.verify import verify
from armillary.recipe import ArmillaryError, ForeignFileError, UsageError
from tiny_model import tiny_hf  # noqa: F401


@dataclass
class Oracle:
    """Answers a question by its text, and fails after ``dies_after`` answers."""

    replies: dict[str, str]
    name: str = "oracle"
    dies_after: int | None = None
    cost: Cost = field(default_factory=Cost)
    asked: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "oracle", "model": self.name}

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        # the last first: the order of answers must not matter
        for index, request in reversed(list(enumerate(requests))):
            if self.asked == self.dies_after:
                raise ArmillaryError("the server went away")
            self.asked += 1
            text = self.replies[request.prompt[-1].content]  # type: ignore[union-attr]
            yield Completion(index, (Choice(text, 3, "length" if text.endswith("…") else "stop"),), 5)


def write(path: Path, items: Iterable[Item]) -> Path:
    path.write_bytes(b"".join(to_line(item.to_json()) for item in items))
    return path


def sums(count: int) -> list[Item]:
    asked = [Message("user", f"{a} + {a} = ?") for a in range(count)]
    return [
        Item((turn,), str(2 * a), {"kind": "math"}, "math", "even" if a % 2 == 0 else "odd", 1, "en")
        for a, turn in enumerate(asked)
    ]


GOOD = {f"{a} + {a} = ?": f"The answer is {2 * a}." for a in range(8)}
MIXED = {**GOOD, "1 + 1 = ?": "The answer is 3.", "2 + 2 = ?": "I do not know…", "5 + 5 = ?": ""}


def test_scores_by_family_and_what_cannot_be_read_is_counted_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", sums(8))
    found = examine_items(Oracle(MIXED), {"doubling": path}, tmp_path / "out")
    assert found == read_examination(tmp_path / "out")
    scores = {(r.subset, r.metric): (r.value, r.n) for r in found.results}
    assert scores["doubling", "right"] == (5 / 8, 8) and scores["doubling", "unreadable"] == (2 / 8, 8)
    assert scores["even", "right"] == (3 / 4, 4) and scores["odd", "unreadable"] == (1 / 4, 4)
    assert found.results[0].low < 5 / 8 < found.results[0].high and found.results[0].truncated == 1 / 8
    for item, row in zip(sums(8), found.items["doubling"], strict=True):
        assert row.scores["right"] == float(verify(item, MIXED[item.text]).outcome == "right")
        assert row.outputs == (MIXED[item.text],) and row.gold == item.answer


def test_two_models_are_compared_on_the_same_items(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", sums(8))
    before = examine_items(Oracle(MIXED), {"doubling": path}, tmp_path / "a")
    after = examine_items(Oracle(GOOD, "better"), {"doubling": path}, tmp_path / "b")
    rows = {c.metric: c for c in compare(before, after)}
    assert rows["right"].paired.difference.value == pytest.approx(3 / 8) and len(rows["right"].flips) == 3


def test_an_examination_that_fails_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "items.jsonl", sums(8))
    whole = examine_items(Oracle(MIXED), {"doubling": path}, tmp_path / "whole")
    for dies in range(8):
        with pytest.raises(ArmillaryError, match="went away"):
            examine_items(Oracle(MIXED, dies_after=dies), {"doubling": path}, tmp_path / f"{dies}")
        assert not (tmp_path / f"{dies}" / "results.json").exists()
        second = Oracle(MIXED)
        assert examine_items(second, {"doubling": path}, tmp_path / f"{dies}").items == whole.items
        assert second.asked == 8 - dies
    with pytest.raises(ForeignFileError):
        examine_items(Oracle(GOOD, "another"), {"doubling": path}, tmp_path / "whole")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no items"),
        ([{"messages": [{"role": "user", "content": "Hi"}]}], "has no check"),
        ([sums(1)[0].to_json()] * 2, "occurs twice"),
        (
            [{"messages": [{"role": "user", "content": "Hi"}], "answer": "1", "check": {"kind": "maths"}}],
            "nearest: 'math'",
        ),
    ],
)
def test_items_that_cannot_be_judged_are_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=said):
        examine_items(Oracle({"Hi": "1"}), {"t": path}, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_real_model_answers(tiny_hf: Path, tmp_path: Path) -> None:  # noqa: F811
    path = write(tmp_path / "items.jsonl", sums(4))
    options = ExamineOptions(Sampling(max_new_tokens=4), limit=3)
    backend: Backend = open_backend(str(tiny_hf), BackendOptions(threads=1))
    found = examine_items(backend, {"doubling": path}, tmp_path / "out", options)
    (again,) = backend.complete([Request(sums(1)[0].question, options.sampling)])
    assert found.items["doubling"][0].outputs == (again.choices[0].text,) and len(found.items["doubling"]) == 3
    backend.close()


def test_the_bits_per_byte_of_plain_texts_are_those_of_the_models_likelihood(
    tiny_hf: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    path, texts = write(tmp_path / "items.jsonl", sums(1)), ["The sky is blue.", "天是蓝的。", "The sky is blue."]
    prose = tmp_path / "prose.jsonl"
    prose.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ExamineOptions(Sampling(max_new_tokens=1), texts={"prose": prose})
    backend: Backend = open_backend(str(tiny_hf), BackendOptions(threads=1))
    found = examine_items(backend, {"doubling": path}, tmp_path / "out", options)
    wanted = [
        -likelihood.value / math.log(2) / len(text.encode())
        for text, likelihood in zip(texts, backend.loglikelihood([Pair("", text) for text in texts]), strict=True)
    ][:2]
    assert [row.scores["bits_per_byte"] for row in found.items["prose"]] == pytest.approx(wanted)
    (result,) = [row for row in found.results if row.task == "prose"]
    assert result.value == pytest.approx(sum(wanted) / 2) and result.metric == "bits_per_byte" and result.n == 2
    assert read_examination(tmp_path / "out") == found
    with pytest.raises(UsageError, match="another set already has the name doubling"):
        examine_items(backend, {"doubling": path}, tmp_path / "o", ExamineOptions(texts={"doubling": prose}))
    backend.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has no texts"), ('{"texts": "a"}\n', "prose.jsonl:1: text: must be"), ('\n{"text": " "}\n', ":2: text:")],
)
def test_texts_that_cannot_be_read_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path, prose = write(tmp_path / "items.jsonl", sums(1)), tmp_path / "prose.jsonl"
    prose.write_text(text)
    with pytest.raises(UsageError, match=said):
        examine_items(Oracle(GOOD), {"t": path}, tmp_path / "out", ExamineOptions(texts={"prose": prose}))


def test_the_verb(tiny_hf: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:  # noqa: F811
    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["armillary", "post", "examine", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    path = write(tmp_path / "doubling.jsonl", sums(3))
    asked = (tiny_hf, "--items", path, "--out", tmp_path / "out", "--max-new-tokens", 4, "--threads", 1)
    code, out, _ = call(*asked, "--template", "plain", "--json")
    assert code == 0 and {row["task"] for row in json.loads(out)["results"]} == {"doubling"}
    assert call(*asked, "--items", path)[0] == 2  # one name twice
    code, _, err = call(tiny_hf, "--items", tmp_path / "none.jsonl", "--out", tmp_path / "o")
    assert code == 2 and "none.jsonl" in err
