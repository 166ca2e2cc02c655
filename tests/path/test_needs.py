"""What a comparison needs is stated before the model is made, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_teaching import make

from armillary.evaluate import ComparisonPlan, items_needed, plan_comparison
from armillary.path.needs import needed, said_needed
from armillary.path.teach import teach
from armillary.post.tuning import Handling
from armillary.recipe import UsageError, read_sealed
from armillary.train import InterruptedRunError


def test_the_numbers_are_those_of_the_verb() -> None:
    for difference, items in ((0.05, 160), (0.1, 300), (0.02, 5000)):
        row, plan = needed(difference, items), plan_comparison(ComparisonPlan(difference, items=items))
        assert row["seeds"] == plan["seeds"] and row["rows"] == plan["rows"]
        assert row["needed"] == items_needed(difference, plan["discordant"])
    assert "the 160 items are too few for these two models" in said_needed("held-out", needed(0.05, 160))
    assert "the 5000 items are enough" in said_needed("held-out", needed(0.05, 5000))
    assert needed(0.05, 1)["seeds"] is None  # too few items for any number of seeds


def test_what_a_comparison_needs_is_stated_before_the_model_is_made(tiny_hf: Path, tmp_path: Path) -> None:
    recipe = make(tmp_path, tiny_hf, evolve=None, gain=None, reject=None, dpo=None, merge=None)
    reached: set[str] = set()
    handling = Handling(lambda stage, *_: reached.add(stage), lambda: "items.jsonl" in reached)
    said: list[str] = []
    with pytest.raises(InterruptedRunError):
        teach(recipe, tmp_path / "out", handling, said.append)
    plan = read_sealed(tmp_path / "out" / "plans" / "sft.json", "plan", 1, "")
    assert plan["against"] == "base" and plan["sets"]["held-out"]["items"] == 6
    assert not (tmp_path / "out" / "sft" / "run").exists()
    changed = make(
        tmp_path, tiny_hf, evolve=None, gain=None, reject=None, dpo=None, merge=None, examine={"difference": 0.1}
    )
    with pytest.raises(UsageError, match=r"sft\.json: was made for other sets, or another difference"):
        teach(
            changed.model_copy(update={"examine": recipe.examine.model_copy(update={"difference": 0.1})}),
            tmp_path / "out",
        )
    assert any("the 6 items are too few for these two models" in line for line in said)
