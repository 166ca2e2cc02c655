"""The reserve of the mixture study is trained beyond the edge, or around the optimum, and a rerun finds the same."""

from dataclasses import replace

import numpy as np
import pytest

from armillary.launch import InterruptedStudyError
from armillary.study import anneal_study, mixture_study
from fakes import FakeCorpus, make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")


def test_the_reserve_is_trained_beyond_the_edge(tmp_path):
    """The law's optimum is a mixture of the design with the most of a domain, so the reserve tries more of it."""
    lab = make_lab(tmp_path, make_recipe(study__mixture__reserve=0.25))
    found = mixture_study(lab)
    assert [round.runs for round in found.rounds] == [2, 1] and len(found.design) == len(found.runs) == 12
    designed, further = np.array(found.design)[:9], np.array(found.design)[9:]
    first = found.rounds[0].edges
    high = ["abc".index(edge.of) for edge in first if edge.end == "high"]
    assert high and {edge.by for edge in first} == {"tried"}
    assert (further[:2, high] > designed[:, high].max(0) + 0.01).all()
    assert found.stopped == ("reserve" if any(edge.by == "tried" for edge in found.edges) else "inside")
    trained = list(lab.executor.trained)
    assert mixture_study(lab) == found and lab.executor.trained == trained


def test_the_reserve_surrounds_an_optimum_inside(tmp_path, monkeypatch):
    from armillary.study import mixture

    inside = np.array([0.33, 0.37, 0.3])
    monkeypatch.setattr(mixture, "optimise_mixture", lambda *_, **__: [type("Optimum", (), {"weights": inside})])
    found = mixture_study(make_lab(tmp_path, make_recipe(study__mixture__reserve=0.5)))
    further = np.array(found.design)[-4:]
    assert [(round.runs, round.edges) for round in found.rounds] == [(2, []), (2, [])] and found.stopped == "inside"
    assert np.abs(further - inside).max() < 0.5 and len(np.unique(further.round(6), axis=0)) == 4


def test_a_limit_of_the_user_stops_the_search(tmp_path):
    found = mixture_study(make_lab(tmp_path, make_recipe(limits__ceilings={"a": 0.5})))
    assert found.stopped == "limits"
    assert {edge.by for edge in found.edges} == {"limits"}


def test_a_killed_study_ends_as_one_that_was_not(tmp_path):
    whole = mixture_study(make_lab(tmp_path / "whole"))
    for after in (1, 3, 9, 10, 11, 13, 15):
        lab = make_lab(tmp_path / f"{after}")
        run = lab.executor.run

        def killed(study, jobs, progress, lab=lab, run=run, after=after):
            left = after - len(lab.executor.trained)
            if len(jobs) > left:
                run(study, jobs[:left], progress)
                raise InterruptedStudyError("stopped")
            return run(study, jobs, progress)

        lab.executor.run = killed
        with pytest.raises(InterruptedStudyError):
            mixture_study(lab)
        lab.executor.run = run
        assert mixture_study(lab) == whole, after


def test_a_study_of_an_earlier_version_is_not_trained_again(tmp_path):
    """It had no reserve, and its proxies drew from all the text."""
    corpus = FakeCorpus({"a": 0.02, "b": 0.9, "c": 0.08}, 300_000)
    lab = make_lab(tmp_path, make_recipe(study__mixture__reserve=0, study__match_repetition=False), corpus)
    before = mixture_study(lab)
    anneal_study(lab, before.found)
    now = replace(lab, recipe=make_recipe())
    content = before.model_dump(mode="json")
    old = {name: part for name, part in content.items() if name not in ("stopped", "rounds")}
    now.store.record_stage("mixture", "earlier", old)
    trained = list(lab.executor.trained)
    assert mixture_study(now) == before and anneal_study(now, before.found) and lab.executor.trained == trained
    assert mixture_study(replace(lab, recipe=make_recipe(study__mixture__reserve=0.25))) != before
    assert len(lab.executor.trained) > len(trained)


@pytest.mark.parametrize("content", [{}, {"runs": []}, {"runs": None}, [], "text", {"runs": ["x"], "stopped": ""}])
def test_an_outcome_that_is_none_of_an_earlier_version_changes_nothing(tmp_path, content):
    lab = make_lab(tmp_path)
    lab.store.record_stage("mixture", "foreign", content)
    assert mixture_study(lab).rounds


def test_ctrl_c_in_the_first_runs_ends_the_study(tmp_path):
    """The natural and the uniform mixture are trained first; a stop there is not taken for an unknown noise."""
    lab = make_lab(tmp_path)

    def stopped(*_):
        lab.executor.run = run
        raise InterruptedStudyError("stopped")

    run, lab.executor.run = lab.executor.run, stopped
    with pytest.raises(InterruptedStudyError):
        mixture_study(lab)
    assert not lab.executor.trained
