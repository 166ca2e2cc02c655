"""The copy of its recipe in a workspace, and where results go without ``--out``."""

from pathlib import Path

import pytest

from armillary.recipe import UsageError, given, keep_recipe, load_recipe, results_folder

TEXT = """\
name: seas
corpus:
  domains:
    sky: {source: text/sky}
    no: {source: ../other/sea}
    '2023': {source: /data/year}
    code: {source: "demo:code"}
  tokenizer: {file: tokenizer.json}
target: {'2023': 1}
model: {depth: 2}
training: {tokens: 1000}
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "project" / "seas.yaml"
    file.parent.mkdir()
    file.write_text(TEXT.replace("no:", "'no':"))
    return file


def kept(recipe, folder):
    (folder / "store").mkdir(parents=True, exist_ok=True)
    return keep_recipe(load_recipe(recipe), folder)


def test_the_copy_is_the_recipe_and_moves_with_its_text(recipe, tmp_path):
    out = recipe.parent / "seas"
    assert kept(recipe, out) is None
    assert load_recipe(out / "recipe.yaml") == load_recipe(recipe)
    for path in (out, out / "recipe.yaml"):
        assert given(path).folder == out and not given(path).edited
        assert given(path).file == out / "recipe.yaml"
    recipe.parent.rename(tmp_path / "moved")
    moved = load_recipe(tmp_path / "moved" / "seas" / "recipe.yaml").corpus
    assert moved.domains["sky"].source == str(tmp_path / "moved" / "text" / "sky")
    assert moved.tokenizer.file == str(tmp_path / "moved" / "tokenizer.json")
    assert (moved.domains["2023"].source, moved.domains["code"].source) == ("/data/year", "demo:code")
    assert moved.domains["no"].source == str(tmp_path / "other" / "sea")


def test_a_folder_elsewhere_has_absolute_sources(recipe, tmp_path):
    out = tmp_path / "far" / "away"
    kept(recipe, out)
    assert str(recipe.parent / "text" / "sky") in (out / "recipe.yaml").read_text()
    assert load_recipe(out / "recipe.yaml") == load_recipe(recipe)


def test_another_recipe_takes_the_place_of_a_copy(recipe):
    out = recipe.parent / "seas"
    kept(recipe, out)
    recipe.write_text(recipe.read_text().replace("tokens: 1000", "tokens: 2000"))
    assert kept(recipe, out) is None
    assert load_recipe(out / "recipe.yaml").training.tokens == 2000


def test_an_edit_by_hand_holds_and_is_never_lost(recipe):
    out = recipe.parent / "seas"
    kept(recipe, out)
    copy = out / "recipe.yaml"
    copy.write_text(copy.read_text().replace("tokens: 1000", "tokens: 3000  # mine"))
    assert given(out).edited and load_recipe(copy).training.tokens == 3000
    assert kept(copy, out) is None and "# mine" in copy.read_text()  # in use: it stays as it was written
    assert "recipe.edited-1.yaml" in kept(recipe, out)
    assert "# mine" in (out / "recipe.edited-1.yaml").read_text()
    assert load_recipe(copy).training.tokens == 1000 and not given(out).edited


@pytest.mark.parametrize("torn", ["", "# The recipe of", "{[", "name: x\n"])
def test_a_file_that_is_not_a_copy_is_left_alone(recipe, torn):
    out = recipe.parent / "seas"
    out.mkdir()
    (out / "recipe.yaml").write_text(torn)
    assert "was not changed" in kept(recipe, out)
    assert (out / "recipe.yaml").read_text() == torn


def test_results_in_the_folder_of_the_recipe_itself(recipe):
    """``--out .``: the person's own file stays, and the folder is still addressed by itself."""
    own = recipe.rename(recipe.with_name("recipe.yaml"))
    before = own.read_text()
    assert kept(own, own.parent) is None and own.read_text() == before
    assert given(own.parent).folder == own.parent
    assert given(own).folder is None


def test_a_copy_that_was_copied_away_is_an_ordinary_recipe(recipe, tmp_path):
    out = recipe.parent / "seas"
    kept(recipe, out)
    for name in ("recipe.yaml", "mine.yaml"):
        taken = tmp_path / name
        taken.write_bytes((out / "recipe.yaml").read_bytes())
        assert given(taken).folder is None


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"give the path of a YAML file, or the folder of results"):
        given(tmp_path)
    (tmp_path / "store").mkdir()
    with pytest.raises(UsageError, match=r"is a folder without a recipe.yaml; .* the folder with --out"):
        given(tmp_path)


def test_results_lie_beside_the_recipe_from_wherever_it_is_called(recipe, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for where in (tmp_path, recipe.parent, elsewhere):
        monkeypatch.chdir(where)
        place, note = results_folder(recipe, "seas")
        assert place.resolve() == recipe.parent / "seas" and note is None
    assert not any(elsewhere.iterdir())


def test_results_in_the_old_place_are_used_and_told(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "seas"
    old.mkdir()
    assert results_folder(recipe, "seas")[1] is None  # nothing of ours in it
    (old / "store").mkdir()
    place, note = results_folder(recipe, "seas")
    assert place.resolve() == old and f"mv seas {Path('project/seas')}" in note
    (recipe.parent / "seas").mkdir()
    place, note = results_folder(recipe, "seas")
    assert place.resolve() == recipe.parent / "seas" and "--out seas" in note


def test_results_of_another_recipe_of_that_name_are_not_taken(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept(recipe, tmp_path / "seas")
    assert results_folder(recipe, "seas")[0].resolve() == tmp_path / "seas"
    recipe.write_text(recipe.read_text().replace("text/sky", "text/other"))
    place, note = results_folder(recipe, "seas")
    assert place.resolve() == recipe.parent / "seas" and note is None
