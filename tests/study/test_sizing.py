"""From a budget to sizes: what is planned fits the budget, and what cannot fit is told with what it takes."""

import math
import re

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from armillary.recipe import Lesson, Recipe, UsageError, parse_budget
from armillary.store import Store
from armillary.study import SmallBudgetError, make_plan, plan_inputs, remaining, stages_of

SETTINGS = {
    "name": "tiny",
    "target": {"voyage": 1},
    "model": {"depth": 3},
    "families": [{"name": "base", "width_per_layer": 8, "head_dim": 8}, {"name": "wide", "width_per_layer": 16}],
    "training": {"budget_share": 0.4, "context_length": 16, "batch_sequences": 4, "seeds": [1, 2], "precision": "fp32"},
    "study": {
        "mixture": {"depth": 1, "runs": 30, "candidates": 2, "confirm_seeds": 2},
        "anneal": {"depth": 1, "shares": [0.1, 0.4], "shapes": ["linear", "cosine"], "sharpen": [1, 2]},
        "ladder": {"depths": [1, 2], "fractions": [0.2, 0.5, 1.0], "families": ["base", "wide"]},
    },
    "validation_windows": 4,
    "budget": "1e11flops",
}


class Fleet:
    """An executor of which one knows how fast it is, and of which the store knows nothing yet."""

    n_workers, device = 2, "astrolabe"

    def __init__(self, store, rate, bf16):
        self.store, self.rate, self.bf16 = store, rate, bf16
        with store.engine.begin() as db:
            db.execute(sa.text("DELETE FROM rates"))

    def measure(self, probes):
        return [self.rate / p.shape.parameters * (self.bf16 if p.precision == "bf16" else 1) for p in probes]


@pytest.fixture(scope="module")
def make_fleet(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"), "sqlite://")
    return lambda rate=1e5, bf16=1.0: Fleet(store, rate, bf16)


@pytest.fixture(scope="module")
def make_recipe(tiny_corpus_spec):
    def make(**training):
        corpus = tiny_corpus_spec.model_dump()
        return Recipe.model_validate({**SETTINGS, "corpus": corpus, "training": {**SETTINGS["training"], **training}})

    return make


@pytest.mark.parametrize(
    ("text", "seconds"), [("3m30s", 210), ("1h30m", 5400), ("1d 2h 3m 4s", 93_784), ("1h5s", 3605), ("2d", 172_800)]
)
def test_a_budget_of_several_units_is_their_sum(text, seconds):
    assert parse_budget(text) == (seconds, "s")


@given(st.floats(1e-3, 1e6), st.sampled_from(["s", "m", "h", "flops", "flop"]), st.booleans())
def test_budgets_are_read(value, unit, upper):
    text = f"{value!r} {unit}"
    read, kind = parse_budget(text.upper() if upper else text)
    factor = {"s": 1, "m": 60, "h": 3600}.get(unit, 1)
    assert read == value * factor and kind == ("flops" if unit.startswith("f") else "s")


@pytest.mark.parametrize("text", ["8m", " 8 M ", "480s", "4.8e2s", "0.13333333333333333h"])
def test_the_same_budget_in_other_words(text):
    assert parse_budget(text) == (pytest.approx(480), "s")


@pytest.mark.parametrize(
    "text", ["", "8", "m", "8x", "8 minutes", "-8m", "0m", "8s8m", "1.2.3m", "1e999s", "nanm", "infs", "8m\n8", "٨m"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="is neither a time"):
        parse_budget(text)


@given(st.floats(11, 15))
def test_a_budget_in_flops_is_kept_and_does_not_depend_on_the_machine(make_recipe, make_fleet, tiny_corpus, exponent):
    recipe, budget = make_recipe(), f"{10**exponent:.6e}flops"
    plan = make_plan(recipe, tiny_corpus, make_fleet(), budget=budget)
    total = sum(plan.flops.values())
    assert set(plan.flops) == set(stages_of(recipe))
    assert 0.95 * 10**exponent < total <= parse_budget(budget)[0]
    assert plan.flops["target"] == pytest.approx(0.4 * 10**exponent, rel=0.01)
    assert all(plan.tokens[stage] >= 60 * 4 * 16 for stage in stages_of(recipe))
    slow = make_plan(recipe, tiny_corpus, make_fleet(rate=7.0), budget=budget)
    assert (slow.tokens, slow.flops, slow.mixture_runs) == (plan.tokens, plan.flops, plan.mixture_runs)


@given(st.floats(600, 1e6), st.floats(1e9, 1e11))
def test_a_budget_in_time_is_kept_at_the_rate_measured(make_recipe, make_fleet, tiny_corpus, seconds, rate):
    plan = make_plan(make_recipe(), tiny_corpus, make_fleet(rate), budget=f"{seconds!r}s")
    assert 0.95 * seconds < sum(plan.seconds.values()) <= seconds * (1 + 1e-9)
    # twice the time on a machine of half the speed is the same study, but for rounding
    other = make_plan(make_recipe(), tiny_corpus, make_fleet(rate / 2), budget=f"{2 * seconds!r}s")
    assert other.tokens == {stage: pytest.approx(tokens, abs=2) for stage, tokens in plan.tokens.items()}


@pytest.mark.parametrize(("workers", "rounds"), [(1, 9), (2, 5), (4, 3), (9, 1)])
def test_the_last_round_of_the_target_takes_as_long_as_a_full_one(
    make_recipe, make_fleet, tiny_corpus, workers, rounds
):
    """Nine runs on two workers take the time of ten."""
    fleet = make_fleet(1e9)
    fleet.n_workers = workers
    recipe = make_recipe(seeds=[1, 2, 3], budget_share=None, tokens=100_000_000)
    plan = make_plan(recipe, tiny_corpus, fleet, budget="1000h")
    alone = make_fleet(1e9)
    alone.n_workers = 1
    one = make_plan(recipe, tiny_corpus, alone, budget="1000h").seconds["target"] / 9
    assert plan.seconds["target"] == pytest.approx(rounds * workers * one)
    assert plan.flops["target"] == make_plan(recipe, tiny_corpus, alone, budget="1000h").flops["target"]


def test_what_is_spent_and_what_no_run_takes_is_taken_off_a_time():
    assert remaining("1e15flops", 100.0) == "1e15flops"
    assert parse_budget(remaining("13m", 30.0)) == (pytest.approx(780 - 30 - 22), "s")
    assert parse_budget(remaining("60s", 10.0)) == (pytest.approx(45), "s")
    with pytest.raises(UsageError, match="budget 60s is too small: building the corpus alone took 70 s"):
        remaining("60s", 70.0)


def test_a_share_for_what_comes_after_the_runs_is_set_aside():
    assert parse_budget(remaining("13m", 30.0, 0.15)) == (pytest.approx(0.85 * 780 - 30 - 22), "s")
    assert parse_budget(remaining("1e15flops", 30.0, 0.15)) == (pytest.approx(8.5e14), "flops")
    with pytest.raises(UsageError, match="took 52 s, and 15% of it are reserved for the lesson; give more"):
        remaining("60s", 52.0, 0.15)
    error = SmallBudgetError("mixture", "60s", 100.0, "s").of_whole("2m", 30.0, 0.15)
    enough = re.search(r"give (\S+) or more", str(error))[1]
    assert parse_budget(remaining(enough, 30.0, 0.15))[0] > 100.0


def test_a_lesson_does_not_change_the_plan_of_the_studies(make_recipe):
    recipe = make_recipe()
    assert plan_inputs(recipe.model_copy(update={"lesson": Lesson()})) == plan_inputs(recipe)


@pytest.mark.parametrize("unit", ["s", "flops"])
def test_a_budget_that_is_too_small_is_told_with_one_that_works(make_recipe, make_fleet, tiny_corpus, unit):
    budget = f"1e8{unit}" if unit == "flops" else "1.0s"
    with pytest.raises(SmallBudgetError, match=rf"budget {budget} is too small for the .* needs 60 steps") as caught:
        make_plan(make_recipe(), tiny_corpus, make_fleet(1e4), budget=budget)
    enough = re.search(r"give (\S+) or more", str(caught.value))[1]
    assert make_plan(make_recipe(), tiny_corpus, make_fleet(1e4), budget=enough).budget == enough
    too_little = caught.value.needed / 1.05
    with pytest.raises(SmallBudgetError):
        make_plan(make_recipe(), tiny_corpus, make_fleet(1e4), budget=f"{too_little:.6e}{unit}")


def test_a_whole_budget_includes_what_was_spent_and_is_reserved():
    error = SmallBudgetError("mixture", "60s", 100.0, "s").of_whole("2m", 30.0)
    assert "budget 2m is too small" in str(error) and "give 2m40s or more" in str(error)
    assert parse_budget(remaining("2m40s", 30.0))[0] > 100.0
    assert "give 1.2e15flops or more" in str(SmallBudgetError("mixture", "1e9flops", 1e15, "flops"))


def test_a_target_that_takes_all_leaves_nothing_for_studies(make_recipe, make_fleet, tiny_corpus):
    recipe = make_recipe(budget_share=None, tokens=10_000_000)
    with pytest.raises(UsageError, match=r"give .* or more"):
        make_plan(recipe, tiny_corpus, make_fleet(), budget="1e11flops")
    plan = make_plan(recipe, tiny_corpus, make_fleet(), budget="1e14flops")
    assert plan.tokens["target"] == 10_000_000 and sum(plan.flops.values()) <= 1e14


def test_one_stage_can_have_a_budget_of_its_own(make_recipe, make_fleet, tiny_corpus):
    plan = make_plan(make_recipe(), tiny_corpus, make_fleet(), ("ladder",), "1e12flops")
    assert list(plan.flops) == ["ladder"]
    assert 0.99e12 < plan.flops["ladder"] <= 1e12


def test_fewer_mixtures_before_runs_that_are_too_short(make_recipe, make_fleet, tiny_corpus):
    def runs(flops):
        return make_plan(make_recipe(), tiny_corpus, make_fleet(), ("mixture",), f"{flops}flops").mixture_runs

    enough = 1e12
    while runs(enough) == 30:
        enough /= 1.1
    assert 20 <= runs(enough) < 30


@pytest.mark.parametrize(("bf16", "taken"), [(1.3, "bf16"), (0.8, "fp32")])
def test_the_faster_precision_is_taken_unless_one_is_asked_for(make_recipe, make_fleet, tiny_corpus, bf16, taken):
    free = make_plan(make_recipe(precision="auto"), tiny_corpus, make_fleet(bf16=bf16))
    assert free.precision == taken
    assert make_plan(make_recipe(), tiny_corpus, make_fleet(bf16=bf16)).precision == "fp32"
    assert all(math.isfinite(rate) and rate > 0 for rate in free.rates.values())
    assert set(free.rates) == {"base/1", "base/2", "base/3", "wide/1", "wide/2"}
