"""The whole post-training on a tiny model: what it leaves, that it resumes, and that a changed recipe is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_teaching import QUESTIONS, make

from armillary.evaluate import read_examination
from armillary.path.taught import teaching_part, write_page
from armillary.path.teach import Step, teach
from armillary.post import read_record
from armillary.post.items import read_items
from armillary.post.tuning import Handling
from armillary.recipe import (
    ArmillaryError,
    ForeignFileError,
    UsageError,
    read_sealed,
    write_sealed,
)
from armillary.recipe.teaching import Merging
from armillary.train import InterruptedRunError


def test_every_model_is_examined_on_the_same_items(taught: tuple[Path, list[Step]]) -> None:
    folder, steps = taught
    assert [step.name for step in steps][:2] == ["base", "sft"] and steps[0].taken and steps[0].against is None
    for step in steps:
        found = read_examination(folder / "out" / "examined" / step.name)
        assert {task: len(rows) for task, rows in found.items.items()} == {"held-out": 6, "harder": 4, "prose": 2}
    ids = [[row.id for row in step.examination.items["held-out"]] for step in steps]
    assert ids.count(ids[0]) == len(steps)
    record = read_sealed(folder / "out" / "record.json", "record", 1, "")
    assert [step["name"] for step in record["steps"]] == [step.name for step in steps]
    # a model of a few thousand parameters answers nothing right: each stage without material says so
    assert 0 < record["gain"]["chance"] < 0.5
    assert f"chance ({record['gain']['chance']:g}" in record["gain"]["cannot_be_predicted"]
    assert record["gain"]["before_the_run"]
    assert "(floor: 3)" in record["left_out"]["evolve"]
    assert record["left_out"].keys() == {"evolve", "sft-2", "dpo", "merged"} and record["taken"] == "base"
    trained = {item.text for item in read_items(folder / "out" / "questions" / "items.jsonl")}
    held = {item.text for item in read_items(folder / "out" / "held-out" / "items.jsonl")}
    assert len(trained) == 24 and not trained & held


def test_training_questions_are_compared_with_every_evaluation_set_in_use(tiny_hf: Path, tmp_path: Path) -> None:
    """The recipe's sets and texts, and the held-out questions."""
    from armillary.path import teach as module

    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedRunError("stopped")

    recipe = make(tmp_path, tiny_hf, evolve=None, gain=None, reject=None, dpo=None, merge=None)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(module, "decontaminate", stop)
        teach(recipe, tmp_path / "out")
    verified = list(read_items(tmp_path / "out" / "verified" / "items.jsonl"))
    prose = Path(recipe.examine.texts["prose"])
    prose.write_text(json.dumps({"text": verified[3].text}) + "\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(module, "examine_items", stop)
        teach(recipe, tmp_path / "out")
    record = read_record(tmp_path / "out" / "questions-clean")
    assert {Path(name.removeprefix("evaluation ")).name for name in record["inputs"]} == {
        "items",
        "items.jsonl",
        "prose.jsonl",
    }
    assert sum(name.startswith("evaluation") for name in record["inputs"]) == 3
    clean = [item.id for item in read_items(tmp_path / "out" / "questions-clean" / "items.jsonl")]
    assert verified[3].id not in clean and len(clean) < len(verified)


def test_a_moved_folder_is_the_same_teaching(taught: tuple[Path, list[Step]], tiny_hf: Path, tmp_path: Path) -> None:
    folder, steps = taught
    record = read_sealed(folder / "out" / "record.json", "record", 1, "")
    assert str(folder) not in json.dumps(record) and str(tiny_hf) not in json.dumps(record)
    assert record["base"]["name"] == tiny_hf.name
    moved = shutil.copytree(folder / "out", tmp_path / "elsewhere")
    for step in record["steps"][1:]:
        assert (moved / step["model"] / "config.json").exists()
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
    again = teach(make(tmp_path, tiny_hf), moved)
    assert [step.to_json()["scores"] for step in again] == [step.to_json()["scores"] for step in steps]
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")} == before


def test_models_of_parts_are_removed_when_they_were_examined(taught: tuple[Path, list[Step]], tiny_hf: Path) -> None:
    folder, _ = taught
    gain = folder / "out" / "gain"
    assert not list(gain.rglob("*.safetensors")) and (folder / "out" / "examined" / "gain" / "0.5").exists()
    # a call that was stopped before the prediction asks no part again
    (gain / "prediction.json").rename(gain / "before.json")
    teach(make(folder, tiny_hf), folder / "out")
    assert not list(gain.rglob("*.safetensors"))
    first, second = (json.loads((gain / name).read_text()) for name in ("before.json", "prediction.json"))
    assert first["scores"] == second["scores"]
    (gain / "before.json").replace(gain / "prediction.json")


def test_the_report_shows_every_model_with_its_scores(taught: tuple[Path, list[Step]]) -> None:
    folder, steps = taught
    for language in ("en", "zh"):
        html = write_page(folder / "out", "tiny", steps, language).read_text(encoding="utf-8")
        assert 'id="teaching"' in html and 'id="diversity"' in html
        assert html.count('scope="row">') >= 2 * len(steps)  # each on the held-out and on the harder questions
    part = teaching_part(folder / "out", steps)
    assert {row.name for row in part.questions} >= {"questions", "verified", "new-questions", "held-out", "harder"}
    assert all(row.verified == 1.0 and row.of == row.items for row in part.questions if row.name != "questions-clean")
    assert part.gain is not None and part.gain.reason and "sft-2" in part.left_out


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
    changed = make(folder, tiny_hf, questions={**QUESTIONS, "seed": 1})
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
        ({"gain": {"parts": [0.5, 0.5, 0.25]}}, "three or more distinct shares"),
        ({"examine": {"sets": {"harder": "x.jsonl"}}}, "is the name of a built-in set"),
        ({"sft": {"epochs": 0}}, "epochs"),
        ({"examine": {"texts": {"harder": "x.jsonl"}}}, "is already the name of a set of questions"),
        ({"reject": {}, "merge": {"evaluations": 4, "scale": 2}}, "chosen by the search"),
        (
            {"reject": {}, "merge": {"evaluations": 4, "method": "weighted"}},
            "are the models' scores and cannot be searched",
        ),
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


@pytest.mark.slow
def test_each_stage_with_material_makes_a_model_that_is_examined(tiny_hf: Path, tmp_path: Path) -> None:
    """Enough passes over few questions that some samples are right."""
    recipe = make(
        tmp_path,
        tiny_hf,
        questions={**QUESTIONS, "items": 60, "harder": 0},
        evolve={"items": 8, "samples": 1, "breadth": 1},
        sft={"epochs": 60, "lr": 0.02, "batch_tokens": 512, "precision": "fp32"},
        gain=None,
        reject={"questions": 60, "samples": 8},
        merge={"evaluations": 4, "validation": 30},
        examine={"max_new_tokens": 40},
    )
    steps = teach(recipe, tmp_path / "out")
    record = read_sealed(tmp_path / "out" / "record.json", "record", 1, "")
    assert "evolve" not in record["left_out"] and len(list(read_items(tmp_path / "out/verified/items.jsonl"))) > 60
    assert {"base", "sft", "sft-2"} <= {step.name for step in steps}, record["left_out"]
    assert ("dpo" in record["left_out"]) != ("dpo" in {step.name for step in steps})
    assert record["search"]["evaluations"] == 4 and record["search"]["items"] >= 8
    assert ("merged" in record["left_out"]) == (record["search"]["decision"] == "do not merge")
    assert ("merged" in {step.name for step in steps}) == (record["search"]["decision"] == "merge")
    again = teach(recipe, tmp_path / "out")
    assert [step.to_json() for step in again] == [step.to_json() for step in steps]
    # the same models merged otherwise: two at most, and by their scores
    for method in ("slerp", "weighted"):
        out = shutil.copytree(tmp_path / "out", tmp_path / method, ignore=shutil.ignore_patterns("merged*"))
        merged = recipe.model_copy(update={"merge": Merging(method=method)})
        names = [step.name for step in teach(merged, out)]
        left_out = read_sealed(out / "record.json", "record", 1, "")["left_out"]
        assert ("merged" in names) != ("merged" in left_out)
        if method == "slerp":
            assert len(json.loads((out / "merged" / "record.json").read_text())["inputs"]) == 3  # with the base


def test_the_record_is_plain_data(taught: tuple[Path, list[Step]]) -> None:
    _, steps = taught
    shown = json.loads(json.dumps([step.to_json() for step in steps]))
    assert shown[1]["against"] == "base" and set(shown[1]["differences"]) == {"held-out", "harder", "prose"}
    assert set(shown[1]["texts"]) == {"prose"} and 0 < shown[1]["texts"]["prose"]["bits_per_byte"] < 64
    changed = shown[1]["texts"]["prose"]["bits_per_byte"] - shown[0]["texts"]["prose"]["bits_per_byte"]
    assert shown[1]["differences"]["prose"]["value"] == pytest.approx(changed)


def test_the_record_of_a_newer_version_is_refused_and_kept(tiny_hf: Path, tmp_path: Path) -> None:
    record = tmp_path / "out" / "record.json"
    record.parent.mkdir()
    write_sealed(record, {"format": 99})
    before = record.read_bytes()
    with pytest.raises(ForeignFileError):
        teach(make(tmp_path, tiny_hf), tmp_path / "out")
    assert record.read_bytes() == before and not (tmp_path / "out" / "questions").exists()
