"""With ``match_repetition``, proxies repeat each domain as often as the target run would, whatever the mixture."""

import pytest

from armillary.corpus import TokenOrder
from armillary.study import Annealing, anneal_study, mixture_study
from armillary.study.lab import RunSize
from fakes import FakeCorpus, make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")


@pytest.mark.parametrize("match", [False, True])
def test_proxies_repeat_as_often_as_the_target(match, tmp_path):
    corpus = FakeCorpus({"a": 0.02, "b": 0.9, "c": 0.08}, 300_000)
    lab = make_lab(tmp_path, make_recipe(study__match_repetition=match), corpus)
    mixture = mixture_study(lab)
    anneal = anneal_study(lab, mixture.found)
    target = lab.steps(lab.plan.tokens["target"])
    compared = 0
    for study, runs in (mixture.study_runs | anneal.study_runs).items():
        for run in runs:
            proxy = lab.store.run_spec(run)
            whole = lab.spec(RunSize(proxy.model, target), proxy.schedule, proxy.mixture[0].weights, proxy.seed)
            if len(proxy.mixture) > 1 or proxy.steps != lab.steps(lab.plan.tokens[study.partition("-")[0]]):
                continue
            seen = TokenOrder.of(proxy, corpus).epochs(proxy.steps)
            wanted = TokenOrder.of(whole, corpus).epochs(target)
            for domain in corpus.domains:
                if wanted[domain] > 0.3:  # a part is a whole number of windows
                    ratio = 1 if match else proxy.steps / target
                    assert seen[domain] == pytest.approx(ratio * wanted[domain], rel=0.1), (study, domain)
                    compared += 1
    assert compared > 20


def test_the_target_and_the_ladder_have_all_the_text(tmp_path):
    lab = make_lab(tmp_path, make_recipe(study__match_repetition=True))
    size = RunSize(lab.shape("base", 2), 40)
    assert lab.annealed(size, Annealing(share=0.2, shape="linear"), {"a": 1.0}, 1).text_share == 1
    assert lab.matched(10 * lab.steps(lab.plan.tokens["target"])) == 1
