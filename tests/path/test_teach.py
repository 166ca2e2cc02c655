"""The whole post-training on a tiny model: what it leaves, that it resumes, and that a changed recipe is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from armillary.evaluate import read_examination
from armillary.path.teach import Step, teach
from armillary.post.items import read_items
from armillary.post.tuning import Handling
from armillary.recipe import (
    ArmillaryError,
    ForeignFileError,
    Teaching,
    UsageError,
    load_teaching,
    read_sealed,
    write_sealed,
)
from armillary.train import InterruptedRunError
from tiny_model import tiny_hf

__all__ = ["tiny_hf"]

_QUESTIONS = {"items": 24, "held_out": 6, "harder": 4, "families": ["expression"], "languages": ["en"], "levels": [1]}
_SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "questions": _QUESTIONS,
    "sft": {"epochs": 2, "batch_tokens": 512, "precision": "fp32"},
    "gain": {},
    "reject": {"questions": 8, "samples": 2},
    "dpo": {},
    "merge": {},
    "examine": {"max_new_tokens": 6},
}


def make(folder: Path, model: Path, **changes: Any) -> Teaching:
    path = folder / "teach.yaml"
    path.write_text(yaml.safe_dump({**_SETTINGS, "model": str(model), **changes}))
    return load_teaching(path)


@pytest.fixture(scope="module")
def taught(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    folder = tmp_path_factory.mktemp("taught")
    return folder, teach(make(folder, tiny_hf), folder / "out")


def test_every_model_is_examined_on_the_same_items(taught: tuple[Path, list[Step]]) -> None:
    folder, steps = taught
    assert [step.name for step in steps][:2] == ["base", "sft"] and steps[0].taken and steps[0].against is None
    for step in steps:
        found = read_examination(folder / "out" / "examined" / step.name)
        assert {task: len(rows) for task, rows in found.items.items()} == {"held-out": 6, "harder": 4}
    ids = [[row.id for row in step.examination.items["held-out"]] for step in steps]
    assert ids.count(ids[0]) == len(steps)
    record = read_sealed(folder / "out" / "record.json", "record", 1, "")
    assert [step["name"] for step in record["steps"]] == [step.name for step in steps]
    # a model of a few thousand parameters answers nothing right: each stage without material says so
    assert "chance" in record["gain"]["cannot_be_predicted"] and record["gain"]["before_the_run"]
    assert record["left_out"].keys() == {"sft-2", "dpo", "merged"} and record["taken"] == "base"
    trained = {item.text for item in read_items(folder / "out" / "questions" / "items.jsonl")}
    held = {item.text for item in read_items(folder / "out" / "held-out" / "items.jsonl")}
    assert len(trained) == 24 and not trained & held


def test_the_same_call_does_nothing_again(taught: tuple[Path, list[Step]], tiny_hf: Path) -> None:
    folder, steps = taught
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.safetensors")}
    again = teach(make(folder, tiny_hf), folder / "out")
    assert [step.to_json() for step in again] == [step.to_json() for step in steps]
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.safetensors")} == before


@pytest.mark.slow
def test_stopped_at_any_point_it_goes_on_to_the_same_scores(
    taught: tuple[Path, list[Step]], tiny_hf: Path, tmp_path: Path
) -> None:
    _, steps = taught
    recipe, left = make(tmp_path, tiny_hf), 0

    def stopping_after(calls: int) -> Callable[[], bool]:
        count = iter(range(calls, -1, -1))
        return lambda: next(count, 0) == 0

    for calls in range(1, 400, 3):
        try:
            found = teach(recipe, tmp_path / "out", Handling(stop=stopping_after(calls)))
        except InterruptedRunError:
            left += 1
        else:
            break
    assert left > 3
    assert [step.to_json()["scores"] for step in found] == [step.to_json()["scores"] for step in steps]


def test_another_recipe_in_the_same_folder_is_refused(taught: tuple[Path, list[Step]], tiny_hf: Path) -> None:
    folder, _ = taught
    changed = make(folder, tiny_hf, questions={**_QUESTIONS, "seed": 1})
    with pytest.raises(UsageError, match="began with other settings"):
        teach(changed, folder / "out")
    make(folder, tiny_hf)


def test_a_model_that_fails_in_a_stage_loses_nothing_before_it(
    tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from armillary.path import teach as module

    def full(*_: Any, **__: Any) -> Any:
        raise ArmillaryError("No space left on device")

    recipe = make(tmp_path, tiny_hf, reject=None, gain=None, dpo=None, merge=None)
    with monkeypatch.context() as patch:
        patch.setattr(module, "fine_tune", full)
        with pytest.raises(ArmillaryError, match="No space"):
            teach(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "examined" / "base" / "results.json").exists()
    assert not (tmp_path / "out" / "record.json").exists()
    assert [step.name for step in teach(recipe, tmp_path / "out")] == ["base", "sft"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dpo": {}}, "needs the stage 'reject'"),
        ({"questions": {"item": 5}}, "item"),
        ({"gain": {"parts": [0.5, 0.5, 0.25]}}, "three or more different shares"),
        ({"examine": {"sets": {"harder": "x.jsonl"}}}, "names a set of the path itself"),
        ({"sft": {"epochs": 0}}, "epochs"),
        ({"questions": {"families": ["remainders"]}}, "nearest: 'remainder'"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_is_made(
    tiny_hf: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    changes = {"reject": None, "dpo": None, "merge": None, **changes}
    with pytest.raises(UsageError) as caught:
        teach(make(tmp_path, tiny_hf, **changes), tmp_path / "out")
    assert said in str(caught.value)
    assert not list((tmp_path / "out").rglob("items.jsonl"))


def test_the_record_is_plain_data(taught: tuple[Path, list[Step]]) -> None:
    _, steps = taught
    shown = json.loads(json.dumps([step.to_json() for step in steps]))
    assert shown[1]["against"] == "base" and set(shown[1]["differences"]) == {"held-out", "harder"}


def test_the_record_of_a_newer_version_is_refused_and_kept(tiny_hf: Path, tmp_path: Path) -> None:
    record = tmp_path / "out" / "record.json"
    record.parent.mkdir()
    write_sealed(record, {"format": 99})
    before = record.read_bytes()
    with pytest.raises(ForeignFileError):
        teach(make(tmp_path, tiny_hf), tmp_path / "out")
    assert record.read_bytes() == before and not (tmp_path / "out" / "questions").exists()
