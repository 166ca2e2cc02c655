"""The folder of an examination: what is written is read, and what was changed is detected."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.evaluate import Examination, Item, Result, item_id, read_examination, write_examination
from armillary.evaluate.results import named_model
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError, read_sealed, write_sealed

ITEM = Item("a1", "algebra", "a1", "5e77", "4", ("It is 4\u2028indeed.\n",), "4", None, {"exact_match": 1.0})
RESULT = Result("gsm8k", "gsm8k", "exact_match", 1.0, 0.2, 1.0, 1, 0.0, None, "5e77")
EXAMINATION = Examination((RESULT,), {"gsm8k": (ITEM,)}, {"model": "m"}, {"name": "native"}, {"seconds": 1.5})


@settings(max_examples=8)
@given(st.text(st.characters(codec=None)), st.none() | st.text(), st.floats(0, 1), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, output: str, answer: str | None, score: float, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("out")
    item = replace(ITEM, outputs=(output, ""), answer=answer, scores={"acc": score}, truncated=cut)
    written = replace(EXAMINATION, items={"gsm8k": (item,)})
    write_examination(folder, written)
    assert read_examination(folder) == written
    assert read_examination(folder / "results.json") == written


def test_an_id_is_the_hash_of_task_subset_and_data() -> None:
    assert item_id("t", "s", {"q": "?", "a": 1}) == item_id("t", "s", {"a": 1, "q": "?"})
    assert len({item_id("t", "s", 1), item_id("u", "s", 1), item_id("t", "r", 1), item_id("t", "s", 2)}) == 4


@pytest.mark.parametrize("change", ["torn", "edited", "missing"])
def test_items_that_are_not_those_of_the_results_are_refused(tmp_path: Path, change: str) -> None:
    write_examination(tmp_path, EXAMINATION)
    file = tmp_path / "items" / "gsm8k.jsonl"
    text = file.read_text()
    if change == "missing":
        file.unlink()
    else:
        file.write_text(text[:-9] if change == "torn" else text.replace('"4"', '"5"'))
    with pytest.raises(DamagedFileError, match=r"gsm8k\.jsonl.*run the examination again"):
        read_examination(tmp_path)


def test_an_unfinished_examination_is_named(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    with pytest.raises(UsageError, match=r"results\.json: not found"):
        read_examination(tmp_path)


def test_a_newer_format_is_refused_and_kept(tmp_path: Path) -> None:
    write_sealed(tmp_path / "results.json", {"format": 3})
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ForeignFileError, match="format 3"):
        read_examination(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_results_of_the_format_before_are_read(tmp_path: Path) -> None:
    write_examination(tmp_path, EXAMINATION)
    document = read_sealed(tmp_path / "results.json", "examination", 2, "")
    items = next((tmp_path / "items").iterdir())
    for row in document["results"]:
        del row["context_cut"]
    lines = [json.loads(line) for line in items.read_text().split("\n")[:-1]]
    for line in lines:
        del line["context_cut"]
    items.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    document |= {"format": 1, "items": {items.stem: sha256(items.read_bytes()).hexdigest()}}
    write_sealed(tmp_path / "results.json", document)
    assert read_examination(tmp_path) == EXAMINATION


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("/srv/models/qwen.Q4.gguf", "qwen.Q4"),
        ("C:\\models\\qwen.gguf", "qwen"),
        ("~/qwen/", "qwen"),
        ("./qwen", "qwen"),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"),
        ("gpt", "gpt"),
        ("/", "/"),
    ],
)
def test_a_model_is_named_without_the_path_on_its_machine(identity: str, name: str) -> None:
    assert named_model({"model": identity, "sha256": "a"}) == {"model": name, "sha256": "a"}
    assert named_model({}) == {}


@pytest.mark.parametrize(
    ("field", "value"), [("value", "0.5"), ("low", True), ("high", None), ("metric", ...), ("colour", "red")]
)
def test_a_result_of_another_form_is_damaged(tmp_path: Path, field: str, value: object) -> None:
    write_examination(tmp_path, EXAMINATION)
    document = json.loads((tmp_path / "results.json").read_text())
    row = document["results"][0]
    if value is ...:
        del row[field]
    else:
        row[field] = value
    del document["sha256"]
    write_sealed(tmp_path / "results.json", document)
    with pytest.raises(DamagedFileError, match=f"results\\[0\\].*{field}"):
        read_examination(tmp_path)


def test_items_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match="items 1 and 2 have the same id a1"):
        write_examination(tmp_path, replace(EXAMINATION, items={"gsm8k": (ITEM, ITEM)}))


@pytest.mark.parametrize("task", ["../gsm8k", "a/b", "", ".hidden"])
def test_a_task_that_cannot_name_a_file_is_refused(tmp_path: Path, task: str) -> None:
    with pytest.raises(UsageError, match="named after it"):
        write_examination(tmp_path, replace(EXAMINATION, items={task: (ITEM,)}))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArmillaryError, match="cannot be written"):
        write_examination(tmp_path / "out", EXAMINATION)
