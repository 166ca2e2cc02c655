"""``verify`` finds out what it is given, and names each damaged file with a remedy; it changes nothing."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from armillary.corpus import Corpus, Example, write_examples
from armillary.evaluate import results
from armillary.path import Workspace, demo_recipe, derived, verify
from armillary.post import Item, StageSpec, open_stage
from armillary.recipe import DamagedFileError, Recipe, UsageError, load_recipe, load_training, write_sealed
from armillary.store import Store
from armillary.train import train_run

_SETTINGS = {"name": "tiny", "target": {"voyage": 1}, "model": {"depth": 2}, "training": {"tokens": 1000}}


@pytest.fixture(scope="module")
def made(tiny_corpus_spec, make_spec, tmp_path_factory):
    """A workspace with a corpus and a store of one finished run, made once."""
    recipe = Recipe.model_validate({**_SETTINGS, "corpus": tiny_corpus_spec.model_dump()})
    folder = tmp_path_factory.mktemp("made") / "tiny"
    place = Workspace(recipe, folder, workers=1)
    corpus, store, spec = place.corpus(), place.store(), make_spec()
    store.add("mixture", [spec])
    store.mark_running(spec.id)
    store.mark_done(train_run(spec, corpus, store.run_folder(spec.id)))
    write_sealed(folder / "plan.json", {"format": 2, "key": "k", "plan": {}})
    store.close()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def contents(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "store.sqlite-" not in path.name
    }


def run_of(folder):
    return next((folder / "store" / "runs").iterdir())


def test_what_is_whole_has_no_problems(folder):
    found = verify(folder)
    assert found.problems == [] and found.kind == "workspace"
    assert {"recipe.yaml", "corpus", "store", "plan.json", f"run {run_of(folder).name}"} <= set(found.checked)
    corpus = next((folder / "corpus").glob("*/manifest.json")).parent
    for place, kind in (
        (folder / "store", "store"),
        (run_of(folder), "run"),
        (corpus, "corpus"),
        (folder / "corpus", "corpus"),
        (folder / "recipe.yaml", "recipe"),
        (demo_recipe(True), "recipe"),
    ):
        found = verify(place)
        assert (found.kind, found.problems) == (kind, []) and found.checked


NAMES = ["plan.json", "recipe.yaml", "corpus/*/manifest.json", "store/runs/*/result.json", "store/store.sqlite"]


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in NAMES for how in ("empty", "torn")]
    + [
        (name, "flipped")
        for name in ("plan.json", "recipe.yaml", "store/runs/*/result.json", "store/runs/*/model.safetensors")
    ],
)
def test_a_damaged_file_is_named_with_a_remedy_and_left_alone(folder, name, how):
    file = next(folder.glob(name))
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[data.index(b"tiny") if name == "recipe.yaml" else len(data) // 2] = 0xFF
    file.write_bytes({"empty": b"", "torn": bytes(data[: len(data) // 2]), "flipped": bytes(data)}[how])
    before = contents(folder)
    found = verify(folder)
    assert found.problems
    for problem in found.problems:
        assert problem.what and problem.remedy
    assert any(folder in problem.file.parents for problem in found.problems)
    assert contents(folder) == before


def test_what_is_nothing_of_ours_is_refused(tmp_path):
    (tmp_path / "text").mkdir()
    with pytest.raises(UsageError, match="verify does not recognise this folder; give a folder of results"):
        verify(tmp_path / "text")
    with pytest.raises(UsageError, match="no such file or folder"):
        verify(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    law = tmp_path / "law.json"
    law.write_text('{"format": "armillary-law", "kind"')
    assert verify(law).kind == "law" and verify(law).problems[0].file == law
    assert load_recipe(demo_recipe(True)).name == "demo-offline"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", b"params,loss\n1,2\n"),
        ("weights.bin", bytes(range(256))),
        ("text.txt", b"name: tiny\nother: 1\n"),
        ("package.json", b'{"name": "x", "version": 1}'),
        ("list.json", b"[1, 2]"),
        ("empty", b""),
    ],
)
def test_a_file_of_another_kind_is_refused_not_called_damaged(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="verify does not"):
        verify(tmp_path / name)


def test_a_file_that_is_checked_with_its_folder_names_the_folder(folder):
    weights = run_of(folder) / "model.safetensors"
    with pytest.raises(UsageError, match=f"give {weights.parent}, the run it belongs to"):
        verify(weights)
    assert verify(run_of(folder) / "result.json").kind == "run"


def test_a_backup_of_the_database_is_checked_and_left_as_it_is(folder, tmp_path):
    backup, store = tmp_path / "backup.sqlite", Store(folder / "store")
    store.backup(backup)
    store.close()
    before = backup.read_bytes()
    assert verify(backup).problems == [] and verify(backup).kind == "database of a store"
    assert verify(folder / "store" / "store.sqlite").problems == []
    with sqlite3.connect(backup) as db:
        db.execute("UPDATE runs SET result = '{}'")
    db.close()
    (problem,) = verify(backup).problems
    assert problem.file == backup and "its result was changed after it was recorded" in problem.what
    backup.write_bytes(before[: len(before) // 2])
    (problem,) = verify(backup).problems
    assert problem.file == backup and "truncated" in problem.what
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.sqlite", "tiny"]
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    db.close()
    with pytest.raises(UsageError, match=r"other\.sqlite: this database belongs to another program"):
        verify(other)


@pytest.mark.parametrize("lost", ["folder", "weights", "result edited", "spec"])
def test_a_damaged_run_is_listed_once(folder, lost):
    run = run_of(folder)
    if lost == "folder":
        shutil.rmtree(run)
    elif lost == "weights":
        (run / "model.safetensors").unlink()
    elif lost == "spec":
        (run / "spec.json").unlink()
    else:
        content = json.loads((run / "result.json").read_text())
        del content["sha256"]
        write_sealed(run / "result.json", {**content, "train_loss": 1.0})
    (problem,) = verify(folder).problems
    assert problem.file == run / {"weights": "model.safetensors", "spec": "spec.json"}.get(lost, "") or (
        problem.file == run / "result.json" and "train_loss is 1.0" in problem.what
    )


def test_each_part_that_is_gone_is_named(folder):
    shutil.rmtree(next((folder / "corpus").glob("*/manifest.json")).parent)
    (folder / "store" / "store.sqlite").unlink()
    shutil.rmtree(folder / "store" / "runs")
    (folder / ".model.published.json").write_text("{}")
    write_sealed(folder / ".written.json", {"format": 1, "files": {}})
    write_sealed(folder / "cost.json", {"format": 2, "wall_s": {}})
    found = {problem.file for problem in verify(folder).problems}
    assert {folder / "corpus", folder / "store" / "store.sqlite", folder / "store" / "runs", folder / "model"} <= found
    shutil.rmtree(folder / "store")
    shutil.rmtree(folder / "corpus")
    assert found == {problem.file for problem in verify(folder).problems}
    (folder / "plan.json").unlink()
    assert found < {problem.file for problem in verify(folder).problems}


def test_examples_are_part_of_a_corpus(folder):
    place = next((folder / "corpus").glob("*/manifest.json")).parent
    corpus = Corpus.open(place)
    one = write_examples(corpus, "one", [Example([1, 2, 3], [0, 1, 1])]).path
    two = write_examples(corpus, "two", [Example([3, 2, 1], [0, 1, 1])]).path
    shutil.copytree(two, place / "examples" / ("0" * 16))
    assert [problem.file.parent.name for problem in verify(place).problems] == ["0" * 16]
    shutil.rmtree(place / "examples" / ("0" * 16))
    assert verify(place).problems == []
    (place / "examples" / ".new.host.abc").mkdir()  # a set that was being written when the program was killed
    (one / "tokens.bin").write_bytes(b"\1\0")
    (one / "ends.bin").unlink()
    (two / "manifest.json").write_text("{}")
    files = {one / "tokens.bin", one / "ends.bin", two / "manifest.json"}
    for part in (place, folder / "corpus", folder):
        assert {problem.file for problem in verify(part).problems} == files


@pytest.mark.parametrize("name", ["recipe.yaml", "target.yaml"])
def test_a_kept_document_that_cannot_be_read_is_damaged_not_mistyped(name, folder, make_spec):
    file = folder / name
    if name == "target.yaml":
        run = make_spec().model_dump(mode="json", exclude_none=True)
        file.write_text(yaml.safe_dump({"name": "t", "corpus": "corpus", "run": run}))
        derived.record(folder, name)
    assert verify(file).problems == []
    file.write_text(file.read_text().replace("vocab_size: 3", "vocab_size: o"))
    (problem,) = verify(file).problems
    assert problem.file == file and problem.what.startswith("was damaged or edited after it was written: line ")
    with pytest.raises(DamagedFileError, match=rf"{name}: was damaged or edited after it was written.*\n.*vocab_size"):
        load_training(file)
    copy = folder.parent / name
    shutil.copy(file, copy)
    if name == "target.yaml":  # nothing is recorded of a copy elsewhere
        with pytest.raises(UsageError, match=r"target\.yaml:\d+: run\.model\.vocab_size") as caught:
            load_training(copy)
        assert not isinstance(caught.value, DamagedFileError)


@pytest.mark.parametrize("name", ["plan.json", "cost.json"])
def test_a_whole_file_of_another_kind_is_named(name, folder):
    write_sealed(folder / name, {"format": 2, "files": {}})
    (problem,) = verify(folder).problems
    assert problem.file == folder / name and "an intact file of another kind" in problem.what


@pytest.fixture
def stage(tmp_path):
    """A finished stage of items: one kept, one dropped."""
    out, items = tmp_path / "stage", [Item.from_json(_ITEM), Item.from_json({**_ITEM, "id": "b"})]
    with open_stage(out, StageSpec("try")) as opened:
        opened.keep("a", items[0])
        opened.drop("b", "too easy")
        opened.finish()
    return out


_ITEM = {
    "id": "a",
    "messages": [{"role": "user", "content": "1 + 1?"}],
    "answer": "2",
    "check": {"kind": "math"},
    "domain": "math",
    "family": "sum",
    "level": 1,
    "language": "en",
    "origin": {"stage": "try", "parents": []},
}


@pytest.mark.parametrize("name", ["stage.json", "record.json", "items.jsonl", "dropped.jsonl"])
def test_a_damaged_file_of_a_stage_is_named(name, stage):
    assert (verify(stage).kind, verify(stage).problems) == ("stage of items", [])
    (stage / name).write_bytes((stage / name).read_bytes()[:-9])
    assert [problem.file for problem in verify(stage).problems] == [stage / name]


def test_a_stage_that_has_not_finished_is_whole_and_one_without_its_description_is_not(stage):
    (stage / "record.json").rename(stage / "elsewhere.json")
    assert verify(stage).problems == []
    (stage / "elsewhere.json").rename(stage / "record.json")
    (stage / "stage.json").unlink()
    assert [problem.file for problem in verify(stage).problems] == [stage / "stage.json"]


@pytest.mark.parametrize("name", ["results.json", "items/cloze.jsonl"])
def test_a_damaged_file_of_an_examination_is_named(name, tmp_path):
    row = {"id": "0", "subset": "sky", "cluster": "0", "settings": "", "gold": "x", "outputs": ("x",), "answer": "x"}
    item = results.Item(**row, second_answer=None, scores={"accuracy": 1.0}, truncated=False)
    results.write_examination(tmp_path, results.Examination((), {"cloze": (item,)}, {"run": "x"}, {}, {}))
    assert (verify(tmp_path).kind, verify(tmp_path).problems) == ("examination", [])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"sky", b"sea").replace(b"run", b"rum"))
    assert [problem.file for problem in verify(tmp_path).problems] == [tmp_path / name]
