"""Annealings beyond the edge of those listed: trained while the best one is at an edge, and a rerun finds the same."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

import fakes
from armillary.launch import InterruptedStudyError
from armillary.study import anneal_study
from fakes import make_lab, make_recipe

pytestmark = pytest.mark.usefixtures("quick_law")
MIXTURE = {"a": 0.5, "b": 0.3, "c": 0.2}


def lab_of(folder, lose=None, **fields):
    fields = {"shares": [0.05, 0.1], "sharpen": [1], **fields}
    return make_lab(
        folder, make_recipe(**{f"study__anneal__{name}": value for name, value in fields.items()}), lose=lose
    )


def shares(found):
    return [branch.annealing.share for branch in found.branches]


def test_longer_decays_are_trained_until_the_best_lies_inside(tmp_path):
    """The losses are lowest for a decay over a quarter of the steps."""
    lab = lab_of(tmp_path, reserve=9)
    found = anneal_study(lab, MIXTURE)
    assert shares(found) == [0.05, 0.1, 0.15, 0.225, 0.3375]
    assert found.stopped == "inside" and found.edges == [] and found.best == "22.5% linear"
    assert found.reference == "10% linear"
    assert [(one.runs, [(edge.of, edge.end, edge.by) for edge in one.edges]) for one in found.rounds] == 3 * [
        (2, [("share", "high", "tried")])
    ]
    assert {run for branch in found.branches for run in branch.runs} <= set(lab.executor.trained)
    trained = list(lab.executor.trained)
    assert anneal_study(lab, MIXTURE) == found and lab.executor.trained == trained


def test_shorter_decays_too(tmp_path):
    found = anneal_study(lab_of(tmp_path, shares=[0.5, 0.9]), MIXTURE)
    assert shares(found) == [0.5, 0.9, 0.3333, 0.2222, 0.1481] and found.stopped == "inside"


def test_the_reserve_ends_the_search(tmp_path):
    found = anneal_study(lab_of(tmp_path, reserve=1), MIXTURE)
    assert shares(found) == [0.05, 0.1, 0.15] and found.stopped == "reserve"
    assert [(edge.of, edge.value, edge.end, edge.by) for edge in found.edges] == [("share", 0.15, "high", "tried")]
    without = anneal_study(lab_of(tmp_path / "without", reserve=0), MIXTURE)
    assert shares(without) == [0.05, 0.1] and without.stopped == "reserve" and without.rounds == []


def test_a_limit_of_the_user_ends_the_search(tmp_path):
    found = anneal_study(lab_of(tmp_path, reserve=9, max_share=0.12), MIXTURE)
    assert shares(found) == [0.05, 0.1, 0.12] and found.stopped == "limits"
    assert [(edge.value, edge.by) for edge in found.edges] == [(0.12, "limits")]
    with pytest.raises(ValidationError, match=r"is 0.05, below the largest value listed \(0.1\)"):
        lab_of(tmp_path / "crossed", max_share=0.05)


def test_share_and_power_move_together(tmp_path):
    """The target is mostly domain a, so sharpening towards it helps without end."""
    found = anneal_study(lab_of(tmp_path, sharpen=[1, 1.5], reserve=3), MIXTURE)
    further = [(branch.annealing.share, branch.annealing.sharpen) for branch in found.branches[4:]]
    assert further == [(0.15, 1.5), (0.1, 2.25), (0.15, 2.25)]
    assert found.stopped == "reserve" and {edge.of for edge in found.edges} == {"share", "sharpen"}


def test_longer_decays_branch_from_the_trunk(tmp_path):
    lab = lab_of(tmp_path)
    jobs = []
    run = lab.executor.run
    lab.executor.run = lambda study, asked, progress: jobs.extend(asked) or run(study, asked, progress)
    found = anneal_study(lab, MIXTURE)
    kept = {job.spec.id: job.keep for job in jobs if job.keep}
    further = {run for branch in found.branches[2:] for run in branch.runs}
    starts = {job.spec.id: job for job in jobs if job.spec.id in further}
    assert starts.keys() == further
    for job in starts.values():
        trunk, step = job.trunk
        assert step in kept[trunk] and step == job.spec.schedule.decay_start(job.spec.steps)


def test_a_killed_study_ends_as_one_that_was_not(tmp_path):
    whole = anneal_study(lab_of(tmp_path / "whole"), MIXTURE)
    for after in range(2, 12, 2):
        lab = lab_of(tmp_path / f"{after}")
        run = lab.executor.run

        def killed(study, jobs, progress, lab=lab, run=run, after=after):
            left = after - len(lab.executor.trained)
            if len(jobs) > left:
                run(study, jobs[:left], progress)
                raise InterruptedStudyError("stopped")
            return run(study, jobs, progress)

        lab.executor.run = killed
        with pytest.raises(InterruptedStudyError):
            anneal_study(lab, MIXTURE)
        lab.executor.run = run
        assert anneal_study(lab, MIXTURE) == whole, after


def test_nothing_is_trained_beyond_while_a_run_is_to_be_retried(tmp_path):
    lab = lab_of(tmp_path, lose=lambda spec: "failed" if spec.schedule.decay_steps / spec.steps > 0.08 else None)
    found = anneal_study(lab, MIXTURE)
    assert shares(found) == [0.05, 0.1] and found.passing
    lab.executor.lose = lambda spec: None
    assert anneal_study(lab, MIXTURE).stopped in ("inside", "reserve") and len(anneal_study(lab, MIXTURE).branches) > 2


def test_a_decay_that_diverges_is_the_end(tmp_path):
    lab = lab_of(tmp_path, lose=lambda spec: "diverged" if spec.schedule.decay_steps / spec.steps > 0.12 else None)
    found = anneal_study(lab, MIXTURE)
    assert shares(found) == [0.05, 0.1, 0.15] and found.stopped == "inside" and not found.edges


def test_a_study_of_an_earlier_version_is_kept(tmp_path):
    lab = lab_of(tmp_path, reserve=0)
    before = anneal_study(lab, MIXTURE)
    content = before.model_dump(mode="json")
    old = {name: part for name, part in content.items() if name not in ("stopped", "rounds")}
    now = lab_of(tmp_path / "now")
    keys = []
    record = now.store.record_stage
    key_of = replace(now, recipe=lab.recipe)
    key_of.store.record_stage = lambda stage, key, content: keys.append(key)
    anneal_study(key_of, MIXTURE)
    now.store.record_stage = record
    now.store.record_stage("anneal", keys[0], old)
    kept = anneal_study(now, MIXTURE)
    assert kept.stopped == "" and shares(kept) == [0.05, 0.1]
    asked = replace(now, recipe=lab_of(tmp_path / "asked", reserve=4).recipe)
    assert len(anneal_study(asked, MIXTURE).branches) > 2


def test_limits_that_undo_a_sharpening_are_limits(tmp_path):
    lab = lab_of(tmp_path, shares=[0.25], sharpen=[1, 2])
    tight = replace(
        lab,
        recipe=make_recipe(
            study__anneal__shares=[0.25], study__anneal__sharpen=[1, 2], limits__ceilings={"a": 0.55, "b": 0.35}
        ),
    )
    found = anneal_study(tight, MIXTURE)
    assert np.isfinite(found.difference) and {edge.by for edge in found.edges} <= {"limits"}
    assert found.stopped in ("limits", "inside")
    assert fakes.FakeCorpus.domains == ("a", "b", "c")
