"""Every recipe in examples/ can be loaded by this version."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.recipe import LargeRun, load_recipe, load_teaching, load_training

EXAMPLES = Path(__file__).parents[2] / "examples"
TEACHINGS = sorted(EXAMPLES.glob("teach-*.yaml"))
FILES = sorted(path for path in EXAMPLES.glob("*.yaml") if path not in TEACHINGS)


def test_every_example_is_loaded_below() -> None:
    recipes = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".py"}
    assert recipes == {path.name for path in (*FILES, *TEACHINGS)} >= {"own-corpus.yaml", "teach-smollm2.yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_loads(path: Path) -> None:
    recipe = load_training(path)
    if isinstance(recipe, LargeRun):
        assert Path(recipe.corpus).is_relative_to(EXAMPLES)
        return
    # Relative sources belong to the example's own folder, not to wherever the command is given.
    sources = [domain.source for domain in recipe.corpus.domains.values() if not domain.source.startswith("demo:")]
    assert all(Path(source).is_relative_to(EXAMPLES) for source in sources)
    # Each shape that the recipe would train exists.
    depths = {recipe.model.depth, recipe.study.mixture.depth, recipe.study.anneal.depth, *recipe.study.ladder.depths}
    for family in recipe.families:
        assert all(family.shape(depth, recipe.corpus.tokenizer.vocab_size).parameters > 0 for depth in depths)


@pytest.mark.parametrize("path", TEACHINGS, ids=lambda path: path.name)
def test_an_example_of_a_teaching_loads(path: Path) -> None:
    teaching = load_teaching(path)
    files = [teaching.model, *teaching.examine.sets.values(), *teaching.examine.texts.values()]
    assert all(Path(where).is_relative_to(EXAMPLES) for where in files)


@pytest.mark.parametrize(
    ("name", "ranks", "parameters", "active"),
    [
        ("telechat2-115b", 512, (113.28e9, 113.285e9), (113.28e9, 113.285e9)),
        ("moe-1t", 10_240, (1e12, 1.1e12), (30e9, 50e9)),
    ],
)
def test_a_large_example_is_as_large_as_it_says(
    name: str, ranks: int, parameters: tuple[float, float], active: tuple[float, float]
) -> None:
    large = load_training(EXAMPLES / f"{name}.yaml")
    assert isinstance(large, LargeRun)
    assert large.layout is not None
    assert large.layout.ranks == ranks
    assert parameters[0] <= large.run.model.parameters <= parameters[1]
    assert active[0] <= large.run.model.active_parameters <= active[1]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_recipe_in_a_readme_loads(page: str, tmp_path: Path) -> None:
    blocks = (EXAMPLES.parent / page).read_text(encoding="utf-8").split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        path = tmp_path / "recipe.yaml"
        path.write_text(block.split("```")[0], encoding="utf-8")
        assert load_recipe(path).corpus.training_domains
