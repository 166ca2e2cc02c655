"""Noise first: what the confirmation can find, from runs that the study needs anyway."""

from dataclasses import replace

import numpy as np
import pytest

from armillary.recipe import ArmillaryError, UsageError
from armillary.study import mixture_study, study_power
from fakes import FakeCorpus, make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")


def test_the_power_costs_no_run_that_the_study_does_not_need(tmp_path):
    lab = make_lab(tmp_path)
    before = study_power(lab, 0.01)
    assert before.mixtures == 2 and len(lab.executor.trained) == 4  # two mixtures, two seeds each
    found = mixture_study(lab)
    assert len(lab.executor.trained) == len({*found.runs, *(run for c in found.candidates for run in c.runs)})
    after = study_power(lab, 0.01)
    assert after.mixtures == 10 and found.detectable == after.target.detectable == before.target.detectable
    assert [metric.ratio for metric in after.metrics] == sorted((m.ratio for m in after.metrics), reverse=True)
    assert {metric.name for metric in after.metrics} == {"target", "a", "b", "c"}


def test_the_noise_is_that_of_the_runs(tmp_path):
    """The runs of the fakes have a noise of 0.002 in each domain; 32 seeds of two mixtures show it."""
    lab = make_lab(tmp_path, make_recipe(study__mixture__confirm_seeds=32))
    power = study_power(lab, 0.001)
    for metric in power.metrics:
        if metric.name != "target":
            assert metric.noise == pytest.approx(0.002, rel=0.2)  # 62 degrees of freedom
            assert metric.noise_low < metric.noise < metric.noise_high
        assert metric.detectable < metric.noise  # 32 seeds
        assert metric.seeds is not None and metric.seeds > 32


def test_the_power_of_the_later_choices_is_stated_too(tmp_path):
    """Annealing: three shares with two powers, and the reserve of three."""
    found = study_power(make_lab(tmp_path, make_recipe(study__lr={})), 0.01)
    assert [(one.of, one.arms, one.seeds) for one in found.decisions] == [
        ("mixture", 4, 2),
        ("anneal", 9, 2),
        ("lr", 2, 3),
    ]
    mixture, anneal, lr = found.decisions
    assert mixture.detectable == found.target.detectable and mixture.needed == found.target.seeds
    assert anneal.detectable > 0 and lr.needed is not None and lr.needed >= 2
    single = make_recipe(study__anneal={"shares": [0.2], "shapes": ["linear"]})
    assert [one.of for one in study_power(make_lab(tmp_path / "one", single)).decisions] == ["mixture"]


def test_a_metric_of_noise_alone_decides_nothing(tmp_path, monkeypatch):
    """Nothing depends on the mixture, but one candidate is lucky beyond the test's interval."""
    import fakes
    from armillary.study import mixture

    lab = make_lab(tmp_path)
    plain = fakes.result_of

    def flat(spec):
        noise = float(np.random.default_rng(int(spec.id[:8], 16)).normal(0, 0.01))
        return replace(plain(spec), loss=dict.fromkeys("abc", 3.0 + noise))

    monkeypatch.setattr(fakes, "result_of", flat)
    monkeypatch.setattr(mixture, "best_of", lambda groups, reference: Lucky())
    found = mixture_study(lab)
    assert found.taken == "natural" and not found.significant and "decides nothing" in found.reason


class Lucky:
    name = best = "candidate 1"
    difference = (-0.1, -0.2, -0.01)
    significant = True


def test_wrong_differences_and_lost_runs_are_named(tmp_path):
    with pytest.raises(UsageError, match="difference: 0 is not possible; give nats per token above 0"):
        study_power(make_lab(tmp_path), 0.0)
    lab = make_lab(tmp_path / "lost", lose=lambda spec: "failed" if spec.seed >= 1000 else None)
    with pytest.raises(
        ArmillaryError, match=r"power: no mixture has two seeds with a result; first cause: run .* disk"
    ):
        study_power(lab)


def test_a_uniform_natural_mixture_is_one_arm(tmp_path):
    third = dict.fromkeys("abc", 1 / 3)
    power = study_power(make_lab(tmp_path, corpus=FakeCorpus(third)))
    assert power.mixtures == 1 and all(metric.signal == 0 for metric in power.metrics)
