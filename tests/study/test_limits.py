"""Floors, ceilings and passes hold for whatever is trained, in every arm and phase, over the whole target run."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from armillary.recipe import Limits, UsageError
from armillary.study import Allowed, Annealing, Found, mixture_study, phases, target_spec
from fakes import FakeCorpus, along, make_lab, make_plan, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")
DOMAINS = ("a", "b", "c")
shares = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda v: dict(zip(DOMAINS, (np.array(v) / sum(v)).tolist(), strict=True))
)


@st.composite
def limited(draw):
    """Limits that leave a mixture, the natural mixture, and tokens of text per token of the target run."""
    floors = {d: draw(st.floats(0, 0.3)) for d in draw(st.sets(st.sampled_from(DOMAINS)))}
    ceilings = {d: draw(st.floats(floors.get(d, 0), 1)) for d in draw(st.sets(st.sampled_from(DOMAINS)))}
    limits = Limits(max_epochs=draw(st.floats(0.3, 8)), floors=floors, ceilings=ceilings)
    return limits, draw(shares), draw(st.integers(20_000, 1_000_000))


def held(spec, limits, corpus):
    """Whether a run keeps the limits: each phase the floors and ceilings, all of it the passes."""
    total = dict.fromkeys(DOMAINS, 0.0)
    for phase in phases(spec):
        for domain in DOMAINS:
            weight = phase.weights.get(domain, 0.0)
            assert limits.floors.get(domain, 0) - 1e-6 <= weight <= limits.ceilings.get(domain, 1) + 1e-6
            total[domain] += phase.share * weight * spec.tokens
    assert sum(phase.share for phase in phases(spec)) == pytest.approx(1)
    for domain in DOMAINS:
        assert total[domain] / len(corpus.train_tokens(domain)) <= limits.max_epochs * (1 + 1e-6)


ANNEALINGS = st.builds(
    Annealing,
    share=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine"]),
    sharpen=st.sampled_from([1, 0.5, 2, 5, 1000, -1]),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("limits"))


@given(bounds=limited(), any_mixture=shares, annealing=ANNEALINGS, tokens=st.integers(1, 400_000))
def test_whatever_the_target_could_be_keeps_the_limits(lab, bounds, any_mixture, annealing, tokens):
    limits, natural, text = bounds
    corpus = FakeCorpus(natural, text)
    try:
        recipe = make_recipe(limits=limits.model_dump(mode="json"), training__tokens=tokens)
        lab = replace(lab, recipe=recipe, corpus=corpus, plan=make_plan(recipe))
        allowed = lab.allowed()
    except (UsageError, ValidationError):
        assume(False)
    for raw in (natural, dict.fromkeys(DOMAINS, 1 / 3), any_mixture):
        weights = lab.named(allowed.within(lab.vector(raw)))
        plain = Found(mixture=weights, natural=weights, uniform=weights, annealing=annealing)
        held(target_spec(lab, plain, weights, 1), limits, corpus)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 100, "ceilings": {"c": 0.1}, "floors": {"a": 0.3}},
        {"max_epochs": 0.2},
        {"max_epochs": 100, "floors": {"c": 0.5}},
        {"max_epochs": 100},
    ],
)
def test_every_run_of_every_study_keeps_the_limits(tmp_path, limits):
    corpus = FakeCorpus({"a": 0.1, "b": 0.2, "c": 0.7}, 600_000)
    recipe = make_recipe(limits=limits, study__anneal__sharpen=[1, 3])
    lab = make_lab(tmp_path, recipe, corpus)
    found = along(lab)
    for run in {row["run"] for row in lab.store.overview()}:
        spec = lab.store.run_spec(run)
        for phase in phases(spec):
            for domain in DOMAINS:
                weight = phase.weights.get(domain, 0.0)
                low, high = recipe.limits.floors.get(domain, 0), recipe.limits.ceilings.get(domain, 1)
                assert low - 1e-6 <= weight <= high + 1e-6, (run, phase)
    for arm in found["target"].arms:
        for run in arm.runs:
            held(lab.store.run_spec(run), recipe.limits, corpus)
        assert arm.phases == phases(lab.store.run_spec(arm.runs[0]))
    assert set(found["mixture"].adjusted) <= {"natural", "uniform"}
    for name, raw in found["mixture"].adjusted.items():
        assert raw != getattr(found["mixture"], name)
    assert (found["mixture"].adjusted == {}) == (limits == {"max_epochs": 100})
    kept = found["mixture"].natural == pytest.approx(corpus.natural_mixture())
    assert kept == ("natural" not in found["mixture"].adjusted)


def test_a_mixture_within_the_limits_stays_as_it_is():
    allowed = Allowed.of(FakeCorpus(), Limits(max_epochs=100, ceilings={"a": 0.3}), 1000)
    vector = np.array([0.3, 0.1, 0.6])
    assert allowed.within(vector) is vector
    assert allowed.within(np.array([0.4, 0.1, 0.5])) == pytest.approx([0.3, 0.7 / 6, 3.5 / 6])


def test_an_annealing_may_use_up_what_the_mixture_leaves():
    # 0.2 of the run may be domain a; nine tenths of it have 0.1, so that the last tenth may have all of it.
    allowed = Allowed.of(FakeCorpus({"a": 0.02, "b": 0.49, "c": 0.49}, 1_000_000), Limits(max_epochs=1), 100_000)
    before = np.array([0.1, 0.45, 0.45])
    assert allowed.ending(before, np.array([0.98, 0.01, 0.01]), 0.1) == pytest.approx([0.98, 0.01, 0.01])
    assert allowed.ending(before, np.array([0.98, 0.01, 0.01]), 0.5) == pytest.approx([0.3, 0.35, 0.35])
    ceiled = Allowed.of(
        FakeCorpus({"a": 0.02, "b": 0.49, "c": 0.49}), Limits(max_epochs=1, ceilings={"a": 0.15}), 100_000
    )
    assert ceiled.ending(before, np.array([0.98, 0.01, 0.01]), 0.1) == pytest.approx([0.15, 0.425, 0.425])


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_epochs": 0.06005}, "include only 1 that differ"),
        ({"floors": {"a": 0.4, "b": 0.3, "c": 0.299}}, r"include only 1 that differ .* \(floors"),
        ({"max_epochs": 0.01}, "may fill only 17% of 60,032 tokens"),
        ({"max_epochs": 0.2, "floors": {"a": 0.9}}, "limits.floors: the floor of 'a' is 0.9"),
    ],
)
def test_limits_that_are_too_tight_are_refused_before_anything_is_trained(tmp_path, limits, said):
    lab = make_lab(tmp_path, make_recipe(limits={"max_epochs": 100, **limits}))
    with pytest.raises(UsageError, match=said):
        mixture_study(lab)
    assert lab.executor.trained == []


def test_an_optimum_at_the_end_of_what_was_tried_is_named(tmp_path):
    # The target lies on domain a alone, so the best mixture has as much of it as there is.
    lab = make_lab(tmp_path, make_recipe(target={"a": 1}, limits={"max_epochs": 100, "ceilings": {"a": 0.5}}))
    edges = {(edge.of, edge.end): edge for edge in mixture_study(lab).edges}
    assert edges["a", "high"].by == "limits" and edges["a", "high"].value == pytest.approx(0.5)
    lab = make_lab(tmp_path / "free", make_recipe(target={"a": 1}))
    edges = {(edge.of, edge.end): edge for edge in mixture_study(lab).edges}
    assert edges["a", "high"].by == "tried" and edges["a", "high"].value < 0.999


def test_an_annealing_at_the_end_of_what_was_tried_is_named(tmp_path):
    def edges(shares):
        lab = make_lab(tmp_path / str(shares), make_recipe(study__anneal={"shares": shares, "reserve": 0}))
        return along(lab)["anneal"].edges

    # The losses are lowest for a decay over a quarter of the steps.
    assert edges([0.1, 0.25, 0.6]) == [] == edges([0.25])
    assert [(e.of, e.value, e.end, e.by) for e in edges([0.25, 0.6])] == [("share", 0.25, "low", "tried")]
    assert [(e.of, e.value, e.end) for e in edges([0.05, 0.25])] == [("share", 0.25, "high")]
