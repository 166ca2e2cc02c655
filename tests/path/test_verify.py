"""``verify`` finds out what it is given, and names each damaged file with a remedy; it changes nothing."""

import shutil
from pathlib import Path

import pytest

from armillary.path import Workspace, demo_recipe, verify
from armillary.recipe import Recipe, UsageError, load_recipe, write_sealed
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
    write_sealed(folder / "plan.json", {"format": 2, "x": 1})
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
    with pytest.raises(UsageError, match="nothing of Armillary is here"):
        verify(tmp_path / "text")
    with pytest.raises(UsageError, match="no such file or folder"):
        verify(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    law = tmp_path / "law.json"
    law.write_text("{}")
    assert verify(law).kind == "law" and verify(law).problems[0].file == law
    assert load_recipe(demo_recipe(True)).name == "demo-offline"
