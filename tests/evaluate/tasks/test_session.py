"""An examination in a folder: killed, resumed, mixed, and given wrong things."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from armillary.evaluate import Examination, read_examination
from armillary.evaluate.tasks import ExamOptions, hold_examination, lineage_of
from armillary.generate import Backend, BackendOptions, Completion, Likelihood, Pair, Request, open_backend
from armillary.recipe import DamagedFileError, UsageError

pytest.importorskip("lm_eval")

OPTIONS = ExamOptions(limit=3, shots=0, max_new_tokens=8)
TASKS = ["gsm8k", "cmmlu"]


class Counted:
    """A backend that counts what it is asked, and fails after a number of answers."""

    def __init__(self, backend: Backend, fails_after: int = 10**9) -> None:
        self._backend = backend
        self._left = fails_after
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _count(self, number: int) -> None:
        if self._left < number:
            raise KeyboardInterrupt
        self._left -= number
        self.asked += number

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Counts each answer."""
        for completion in self._backend.complete(requests):
            self._count(1)
            yield completion

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Counts each pair."""
        self._count(len(pairs))
        return self._backend.loglikelihood(pairs)


@pytest.fixture
def opened(folder: Path) -> Callable[..., Counted]:
    """Opens the small model."""
    return lambda fails_after=10**9: Counted(
        open_backend(str(folder), BackendOptions(batch_size=1, device="cpu"), "transformers"), fails_after
    )


def test_a_killed_examination_resumes_without_repeating_a_request(
    opened: Callable[..., Counted], data: Path, tmp_path: Path
) -> None:
    whole = opened()
    expected = hold_examination(lambda: whole, TASKS, data, tmp_path / "whole", OPTIONS)
    assert whole.asked == 3 + 3 * 4
    first = opened(2)
    with pytest.raises(KeyboardInterrupt):
        hold_examination(lambda: first, TASKS, data, tmp_path / "out", OPTIONS)
    with pytest.raises(UsageError, match="finish it first"):
        read_examination(tmp_path / "out")
    second = opened()
    found = hold_examination(lambda: second, TASKS, data, tmp_path / "out", OPTIONS)
    assert first.asked + second.asked == whole.asked
    assert (found.results, found.items) == (expected.results, expected.items)
    assert read_examination(tmp_path / "out") == found
    third = opened()
    assert hold_examination(lambda: third, TASKS, data, tmp_path / "out", OPTIONS).items == expected.items
    assert third.asked == 0


def test_other_tasks_are_added_and_other_settings_are_refused(
    opened: Callable[..., Counted], data: Path, tmp_path: Path
) -> None:
    def hold(tasks: list[str], options: ExamOptions = OPTIONS) -> Examination:
        return hold_examination(opened, tasks, data, tmp_path / "out", options)

    hold(["gsm8k"])
    found = hold(["cmmlu"])
    assert set(found.items) == {"gsm8k", "cmmlu"} == {result.task for result in found.results}
    assert len(hold(["gsm8k"], ExamOptions(limit=4, shots=0, max_new_tokens=8)).items["gsm8k"]) == 4
    with pytest.raises(UsageError, match="contains gsm8k with 4 items, which 3 would replace; raise --limit"):
        hold(["cmmlu", "gsm8k"])
    assert len(read_examination(tmp_path / "out").items["gsm8k"]) == 4
    with pytest.raises(UsageError, match=r"answers of gsm8k with other settings \(few_shot\); choose another --out"):
        hold(["gsm8k"], ExamOptions(limit=3, shots=1, max_new_tokens=8))
    with pytest.raises(UsageError, match=r"other settings \(generation\)"):
        hold(["gsm8k"], ExamOptions(limit=3, shots=0, max_new_tokens=9))


def test_another_model_is_refused(opened: Callable[..., Counted], folder: Path, data: Path, tmp_path: Path) -> None:
    hold_examination(opened, ["cmmlu"], data, tmp_path / "out", OPTIONS)
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    with pytest.raises(UsageError, match="contains an examination of another model"):
        hold_examination(
            lambda: open_backend(str(other), BackendOptions(device="cpu"), "transformers"),
            ["cmmlu"],
            data,
            tmp_path / "out",
            OPTIONS,
        )


def test_a_model_without_a_chat_template_is_named(opened: Callable[..., Counted], data: Path, tmp_path: Path) -> None:
    options = ExamOptions(limit=1, shots=0, chat=True)
    with pytest.raises(UsageError, match=r"gsm8k, item 1: .*no chat template"):
        hold_examination(opened, ["gsm8k"], data, tmp_path / "out", options)
    with pytest.raises(UsageError, match="cmmlu_anatomy: is scored by likelihood"):
        hold_examination(opened, ["cmmlu"], data, tmp_path / "out2", options)


def test_a_prompt_beyond_the_context_is_cut_and_reported(
    opened: Callable[..., Counted], data: Path, tmp_path: Path
) -> None:
    file = data / "gsm8k" / "test.jsonl"
    file.write_text(file.read_text() + json.dumps({"question": "long " * 900, "answer": "#### 1"}) + "\n")
    options = ExamOptions(shots=0, max_new_tokens=2)
    found = hold_examination(opened, ["gsm8k"], data, tmp_path / "out", options)
    cuts = [item.context_cut for item in found.items["gsm8k"]]
    assert cuts[:6] == [0] * 6 and cuts[6] > 0
    assert {result.context_cut for result in found.results} == {1 / 7}
    assert read_examination(tmp_path / "out").items == found.items
    again = hold_examination(lambda: opened(0), ["gsm8k"], data, tmp_path / "out", options)
    assert again.items == found.items


def test_an_answer_as_long_as_the_context_is_refused_with_the_item(
    opened: Callable[..., Counted], data: Path, tmp_path: Path
) -> None:
    file = data / "gsm8k" / "test.jsonl"
    file.write_text(json.dumps({"question": "long " * 900, "answer": "#### 1"}) + "\n")
    with pytest.raises(UsageError, match=r"gsm8k, item 1: .*tokens.*fewer --shots"):
        hold_examination(opened, ["gsm8k"], data, tmp_path / "out", ExamOptions(shots=0, max_new_tokens=2048))


def test_items_are_complete(opened: Callable[..., Counted], data: Path, tmp_path: Path) -> None:
    options = ExamOptions(
        shots=0, max_new_tokens=2, contamination=lambda texts: [{"exact": len(text)} for text in texts]
    )
    found = hold_examination(opened, ["gsm8k", "ceval"], data, tmp_path / "out", options)
    item = found.items["gsm8k"][0]
    assert (
        item.truncated
        and item.outputs[0]
        and item.contaminated == {"exact": len("Question: What is 1 + 1? 1?\nAnswer:")}
    )
    assert [result.truncated for result in found.results if result.task == "gsm8k"] == [1.0, 1.0]
    assert {result.subset for result in found.results if result.task == "ceval"} == {"ceval", "accountant", "law"}
    choice = found.items["ceval"][0]
    assert len(choice.outputs) == 4 and choice.answer in "ABCD" and choice.gold == "A"
    assert choice.outputs["ABCD".index(choice.answer)] == max(choice.outputs, key=float)


def test_the_lineage_of_a_published_model_is_kept(opened: Callable[..., Counted], data: Path, tmp_path: Path) -> None:
    assert lineage_of("https://host/v1") is None and lineage_of(str(tmp_path)) is None
    file = tmp_path / "lineage.json"
    file.write_text('{"run": "r1", "corpus": {"hash": "c1"}, "losses": {}}')
    lineage = lineage_of(str(tmp_path))
    assert lineage == {"run": "r1", "corpus": "c1"}
    options = ExamOptions(limit=1, shots=0, lineage=lineage)
    hold_examination(opened, ["cmmlu"], data, tmp_path / "out", options)
    assert read_examination(tmp_path / "out").model["lineage"] == lineage
    file.write_text('{"other": 1}')
    assert lineage_of(str(tmp_path)) is None
    file.write_text("{")
    with pytest.raises(DamagedFileError, match="lineage"):
        lineage_of(str(tmp_path))


def test_formats_are_asked_once_each_and_averaged(opened: Callable[..., Counted], data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    counted = opened()
    options = ExamOptions(limit=2, shots=0, variants=3, note=notes.append)
    found = hold_examination(lambda: counted, ["cmmlu"], data, tmp_path / "out", options)
    assert counted.asked == 3 * 2 * 4
    assert [len(item.outputs) for item in found.items["cmmlu"]] == [12, 12]
    assert notes == ["cmmlu: 1 of 67 subsets have files; the score covers only these"]
    one = hold_examination(opened, ["cmmlu"], data, tmp_path / "one", OPTIONS)
    assert one.results[0].settings != found.results[0].settings
