"""The learning-rate study: it finds a better rate, keeps a good rule, and says why, for every kind of failure."""

import math
from dataclasses import replace

import pytest

import fakes
from armillary.recipe import ArmillaryError, Recipe
from armillary.study import Annealing, ladder_study, lr_study, make_plan, stages_of, target_spec
from armillary.study.predictions import Found
from fakes import make_lab, make_recipe

MIXTURE = {"a": 0.5, "b": 0.3, "c": 0.2}
ANNEALING = Annealing(share=0.2, shape="linear")
# the best rate of the fake runs is the rule's of this recipe times this, at every size
BEST = 4.0


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("armillary.study.lr._DRAWS", 40)


@pytest.fixture
def basin(monkeypatch):
    """Runs with a basin in the learning rate; ``place`` is the best multiple of the rule's rate."""
    place = [BEST]
    real = fakes.result_of

    def result_of(spec):
        rule = 4e-3 * 64 / spec.model.d_model
        away = math.log(spec.optimizer.lr / rule / place[0])
        result = real(spec)
        known = 0.01 * abs(math.log(spec.optimizer.lr / 4e-3))
        return replace(result, loss={d: (v - known) * math.exp(0.02 * away**2) for d, v in result.loss.items()})

    monkeypatch.setattr(fakes, "result_of", result_of)
    return place


def recipe_with(**section):
    return make_recipe(study__lr=section, study__ladder__depths=[1, 2, 3])


def diverge_above(multiple):
    def lose(spec):
        return "diverged" if spec.optimizer.lr > 1.01 * multiple * 4e-3 * 64 / spec.model.d_model else None

    return lose


def test_a_poor_rule_is_replaced_for_the_ladder_and_the_target(tmp_path, basin):
    lab = make_lab(tmp_path, recipe_with())
    outcome = lr_study(lab, MIXTURE, ANNEALING)
    assert outcome.taken == "tuned" and outcome.significant and outcome.high < 0
    assert [edge.end for edge in outcome.edges] == []
    assert {p.multiple for p in outcome.points} >= {0.35, 0.7, 1.4, 2.8, 5.6, 11.2}
    assert [row.of for row in outcome.sizes] == ["tuned", "tuned", "ladder", "ladder", "ladder", "target"]
    for row in outcome.sizes:
        assert row.lr / row.rule == pytest.approx(BEST, rel=0.6)
        assert row.low < BEST * row.rule < row.high and row.flat[0] < row.lr < row.flat[1]
        assert row.probability > 0.95 and row.gain_low < row.gain < row.gain_high
    at = outcome.sizes[0]
    assert at.gain == pytest.approx(math.exp(0.02 * math.log(BEST) ** 2) - 1, rel=0.3)
    found = Found(mixture=MIXTURE, natural=MIXTURE, uniform=MIXTURE, annealing=ANNEALING, rates=outcome.rates)
    assert target_spec(lab, found, MIXTURE, 1).optimizer.lr == outcome.target.lr
    ladder = ladder_study(lab, MIXTURE, ANNEALING, outcome.rates)
    trained = {lab.store.run_spec(p.run).optimizer.lr for p in ladder.points if p.family == "base"}
    assert trained == {row.lr for row in outcome.sizes if row.of == "ladder"}


def test_it_is_read_again_where_nothing_changed(tmp_path, basin):
    lab = make_lab(tmp_path, recipe_with())
    outcome = lr_study(lab, MIXTURE, ANNEALING)
    trained = len(lab.executor.trained)
    assert lr_study(lab, MIXTURE, ANNEALING) == outcome and len(lab.executor.trained) == trained
    other = replace(lab, plan=fakes.make_plan(recipe_with(), tokens={**lab.plan.tokens, "target": 90_000}))
    assert lr_study(other, MIXTURE, ANNEALING).target.tokens != outcome.target.tokens
    assert len(set(lab.executor.trained)) == len(lab.executor.trained)


def test_a_good_rule_stays(tmp_path, basin):
    basin[0] = 1.0
    outcome = lr_study(make_lab(tmp_path, recipe_with()), MIXTURE, ANNEALING)
    assert outcome.taken == "rule" and outcome.rates is None
    assert outcome.reason or not outcome.significant


def test_too_high_a_rule_is_lowered(tmp_path, basin):
    basin[0] = 0.25
    outcome = lr_study(make_lab(tmp_path, recipe_with()), MIXTURE, ANNEALING)
    assert outcome.taken == "tuned" and outcome.target.lr < 0.5 * outcome.target.rule


def test_no_rate_reaches_one_that_diverged(tmp_path, basin):
    basin[0] = 8.0
    lab = make_lab(tmp_path, recipe_with(), lose=diverge_above(2.8))
    outcome = lr_study(lab, MIXTURE, ANNEALING)
    assert all(row.lr <= 1.001 * 2.8 * row.rule for row in outcome.sizes)
    assert {row.status for row in outcome.failed} == {"diverged"} and not outcome.passing
    assert outcome.taken == "tuned"


def test_a_rule_that_diverges_is_replaced_untested(tmp_path, basin):
    basin[0] = 0.25
    lab = make_lab(tmp_path, recipe_with(), lose=diverge_above(0.4))
    outcome = lr_study(lab, MIXTURE, ANNEALING)
    assert outcome.taken == "tuned" and "diverged" in outcome.reason and not outcome.significant
    assert all(row.lr <= 1.001 * 0.35 * row.rule for row in outcome.sizes)


def test_a_rule_stays_where_almost_no_rate_can_be_trained(tmp_path, basin):
    lab = make_lab(tmp_path, recipe_with(), lose=diverge_above(0.1))
    outcome = lr_study(lab, MIXTURE, ANNEALING)
    assert outcome.taken == "rule" and "too few for a law" in outcome.reason and outcome.target is None


def test_lost_runs_are_retried(tmp_path, basin):
    lab = make_lab(tmp_path, recipe_with(), lose=lambda spec: "failed" if spec.seed == 4000 else None)
    with pytest.raises(ArmillaryError, match=r"lr: 0 of .* the same command retries"):
        lr_study(lab, MIXTURE, ANNEALING)
    lab.executor.lose = lambda spec: "failed" if spec.seed == 5001 else None
    partial = lr_study(lab, MIXTURE, ANNEALING)
    assert partial.taken == "rule" and "confirmation lacks some runs" in partial.reason and partial.passing
    lab.executor.lose = lambda spec: None
    assert lr_study(lab, MIXTURE, ANNEALING).taken == "tuned"


def test_with_mup_the_rate_of_one_width_holds_for_all(tmp_path, monkeypatch):
    real = fakes.result_of

    def result_of(spec):
        result = real(spec)
        known = 0.01 * abs(math.log(spec.optimizer.lr / 4e-3))
        away = math.log(spec.optimizer.lr / 16e-3)
        return replace(result, loss={d: (v - known) * math.exp(0.02 * away**2) for d, v in result.loss.items()})

    monkeypatch.setattr(fakes, "result_of", result_of)
    recipe = make_recipe(study__lr={}, study__ladder__depths=[1, 2, 3], training__lr_exponent=0, training__base_width=8)
    outcome = lr_study(make_lab(tmp_path, recipe), MIXTURE, ANNEALING)
    assert outcome.taken == "tuned"
    assert all(row.low < 16e-3 < row.high for row in outcome.sizes)
    assert all(row.rule == 4e-3 for row in outcome.sizes)


def test_a_section_needs_enough_runs_for_a_law():
    with pytest.raises(ValueError, match="a law needs at least 6"):
        recipe_with(depths=[1], fractions=[1.0], multiples=[0.5, 1, 2])
    assert recipe_with(depths=[1], multiples=[0.5, 1, 2]).study.lr_depths == (1,)
    assert make_recipe(study__lr={}).study.lr_depths == (1, 2)
    assert make_recipe(study__lr={}, study__ladder__depths=[5, 4, 3, 2, 1]).study.lr_depths == (1, 2, 3)


def test_a_recipe_without_the_section_has_no_such_stage():
    recipe = make_recipe()
    assert "lr" not in recipe.model_dump(mode="json")["study"]
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert stages_of(recipe) == ("mixture", "anneal", "ladder", "target")
    assert stages_of(make_recipe(study__lr={})) == ("mixture", "anneal", "lr", "ladder", "target")


@pytest.mark.parametrize("budget", ["2h", "1e13flops"])
def test_a_budget_pays_for_the_study(tmp_path, monkeypatch, budget):
    monkeypatch.setattr("armillary.study.sizing.train_rates", lambda fleet, probes: fleet.measure(probes))
    lab = make_lab(tmp_path)
    sizes = {"training__tokens": None, "training__budget_share": 0.4, "budget": budget}
    without, plan = (
        make_plan(make_recipe(**sizes, **more), lab.corpus, lab.executor) for more in ({}, {"study__lr": {}})
    )
    assert "lr" not in without.seconds and "lr" not in without.tokens
    assert plan.tokens["target"] == without.tokens["target"]
    spent = plan.seconds if budget == "2h" else plan.flops
    studies = sum(value for stage, value in spent.items() if stage != "target")
    assert 0.08 < spent["lr"] / studies < 0.16
    assert sum(spent.values()) == pytest.approx(7200 if budget == "2h" else 1e13, rel=0.02)
