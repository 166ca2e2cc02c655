"""Two phases as one design: runs of two mixtures, their limits, the optimum with its flatness, and what follows."""

import numpy as np
import pytest
from pydantic import ValidationError

from armillary.study import anneal_study, mixture_study, phases
from fakes import FakeCorpus, along, make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")
DOMAINS = ("a", "b", "c")
LIMITS = {"max_epochs": 0.4, "floors": {"c": 0.05}, "ceilings": {"a": 0.6}}


def two(**changes):
    return make_recipe(
        **{"study__mixture__phases": 2, "study__mixture__runs": 20, "training__tokens": 200_000, **changes}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    lab = make_lab(tmp_path_factory.mktemp("two"), two(limits=LIMITS), FakeCorpus())
    return lab, along(lab)


def test_the_design_has_a_mixture_for_each_phase_and_a_share(whole):
    lab, found = whole
    mixture = found["mixture"]
    assert len(mixture.design) == len(mixture.annealing_design) == len(mixture.shares) == len(mixture.runs) == 20
    stable, annealing = np.array(mixture.design), np.array(mixture.annealing_design)
    assert np.abs(stable - annealing).sum(1).max() > 0.3 and min(mixture.shares) < 0.15 and max(mixture.shares) > 0.3
    for run, one, two, share in zip(mixture.runs, stable, annealing, mixture.shares, strict=True):
        first, *rest = phases(lab.store.run_spec(run))
        assert list(first.weights.values()) == pytest.approx(one)
        if rest:
            assert list(rest[0].weights.values()) == pytest.approx(two, abs=0.02)
            assert rest[0].share == pytest.approx(share, abs=0.01)


def test_every_run_keeps_the_limits_of_the_whole_target_run(whole):
    found = whole[1]
    texts = np.array([len(FakeCorpus().train_tokens(domain)) for domain in DOMAINS])
    for point in zip(found["mixture"].design, found["mixture"].annealing_design, found["mixture"].shares, strict=True):
        one, two, share = (np.array(part) for part in point)
        for mixture in (one, two):
            assert (mixture >= [-1e-6, -1e-6, 0.05 - 1e-6]).all() and mixture[0] <= 0.6 + 1e-6
        assert (((1 - share) * one + share * two) * 200_000 / texts <= 0.4 + 1e-3).all()


def test_the_optimum_and_its_flatness_are_stated_for_both_phases(whole):
    mixture = whole[1]["mixture"]
    best = mixture.candidates[0]
    assert best.name == "candidate 1" and best.annealing.weights
    for part, weights in ((mixture.flat.stable, best.weights), (mixture.flat.annealing, dict(best.annealing.weights))):
        assert part.keys() == weights.keys()
        assert all(low - 1e-6 <= weights[name] <= high + 1e-6 for name, (low, high) in part.items())
    assert mixture.flat.share[0] <= best.annealing.share <= mixture.flat.share[1] and mixture.flat.error > 0
    assert mixture.stopped in ("inside", "limits", "reserve") and [one.runs for one in mixture.rounds] == [2, 2]


def test_the_annealing_found_goes_through_the_annealing_study_to_the_target(whole):
    lab, found = whole
    mixture, anneal = found["mixture"], found["anneal"]
    assert mixture.taken != "natural", "the case needs a significantly better point"
    assert anneal.reference == mixture.annealing.name == anneal.branches[0].annealing.name
    target = found["target"]
    natural = lab.store.run_spec(target.arm("natural").runs[0])
    (only,) = phases(natural)
    assert list(only.weights.values()) == pytest.approx([0.2, 0.5, 0.3])
    if anneal.taken.weights:
        first, last = phases(lab.store.run_spec(target.arm("found").runs[0]))
        assert list(first.weights.values()) == pytest.approx(list(mixture.found.values()))
        assert list(last.weights.values()) == pytest.approx(list(dict(anneal.taken.weights).values()), abs=0.02)


def test_a_rerun_trains_nothing(whole):
    lab, found = whole
    trained = list(lab.executor.trained)
    assert mixture_study(lab) == found["mixture"] and lab.executor.trained == trained
    assert anneal_study(lab, found["mixture"].found, found["mixture"].annealing) == found["anneal"]


def test_too_few_runs_are_refused():
    with pytest.raises(ValidationError, match="2 need 12 runs or more before the reserve, and 14 runs leave 11"):
        two(study__mixture__runs=14)
