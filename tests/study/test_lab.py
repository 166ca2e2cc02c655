"""Branches share their trunks: as few steps as possible, and never the steps of another run."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armillary.launch import Job
from armillary.laws import ScalingLaw
from armillary.recipe import MixturePhase, OptimizerSpec, RunSpec, Schedule
from armillary.study import Lab
from armillary.study.lab import laws_speak_of

MIXTURES = [{"sky": 0.5, "sea": 0.5}, {"sky": 0.2, "sea": 0.8}]
LAB = Lab(recipe=None, corpus=None, store=None, executor=None, plan=None, progress=None)


@st.composite
def branches(draw, make_spec):
    """Runs that differ in few things, so that many of them share something."""
    steps = draw(st.sampled_from([10, 12, 20]))
    kind = draw(st.sampled_from(["wsd", "wsd", "wsd", "constant", "linear"]))
    decay = draw(st.sampled_from([0, 4, 5, 8, 10])) if kind == "wsd" else 0
    warmup = draw(st.sampled_from([0, 0, 2])) if decay + 2 <= steps else 0
    phases = [MixturePhase(start_step=0, weights=draw(st.sampled_from(MIXTURES)))]
    if draw(st.booleans()):
        phases.append(MixturePhase(start_step=draw(st.sampled_from([5, max(1, steps - decay)])), weights=MIXTURES[0]))
    return make_spec(
        steps=steps,
        schedule=Schedule(kind=kind, warmup_steps=warmup, decay_steps=min(decay, steps)),
        mixture=tuple(phases),
        seed=draw(st.sampled_from([1, 1, 1, 2])),
        optimizer=OptimizerSpec(lr=draw(st.sampled_from([1e-2, 1e-2, 1e-3]))),
    )


@given(st.data())
def test_every_branch_may_start_where_its_trunk_leaves_a_checkpoint(make_spec, data):
    specs = data.draw(st.lists(branches(make_spec), min_size=1, max_size=8))
    jobs = LAB.with_trunks(specs)
    by_id = {job.spec.id: job for job in jobs}
    assert len(by_id) == len(jobs)  # no run twice, and none waits for itself
    trunks = {job.trunk[0] for job in jobs if job.trunk}
    assert {job.spec.id for job in jobs if not job.keep} >= {s.id for s in specs} - trunks
    for job in jobs:
        RunSpec.model_validate(job.spec.model_dump())  # a trunk is a run like any other
        if job.trunk:
            run, step = job.trunk
            trunk = by_id[run]
            assert step in trunk.keep and 0 < step < job.spec.steps
            assert trunk.spec.prefix_id(step) == job.spec.prefix_id(step)
        if job.keep:
            assert max(job.keep) == job.spec.steps and job.spec.id in trunks
    alone = sum(spec.steps for spec in {spec.id: spec for spec in specs}.values())
    assert sum(job.spec.steps - (job.trunk[1] if job.trunk else 0) for job in jobs) <= alone


def test_one_trunk_for_all_that_agree_on_all_but_their_end(make_spec):
    def spec(share, decay="linear", **changes):
        return make_spec(steps=20, schedule=Schedule(warmup_steps=2, decay_steps=share, decay=decay), **changes)

    same = [spec(4), spec(8), spec(4, "1-sqrt"), spec(8, "cosine")]
    sharpened = spec(8, mixture=(*same[0].mixture, MixturePhase(start_step=12, weights=MIXTURES[1])))
    alone = spec(4, seed=9)
    jobs = LAB.with_trunks([*same, sharpened, alone])
    trunks = [job for job in jobs if job.keep]
    assert len(trunks) == 1 and trunks[0].keep == (12, 16) and trunks[0].spec.steps == 16
    assert trunks[0].spec.schedule == Schedule(kind="constant", warmup_steps=2)
    assert trunks[0].spec.mixture == same[0].mixture
    starts = Counter(job.trunk for job in jobs if job.trunk)
    assert starts == {(trunks[0].spec.id, 16): 2, (trunks[0].spec.id, 12): 3}
    assert Job(alone) in jobs  # a trunk for one branch would save nothing


def test_what_has_no_stable_part_is_trained_whole(make_spec):
    whole = [make_spec(schedule=Schedule(kind="wsd", decay_steps=12, decay=d)) for d in ("linear", "cosine")]
    endless = [make_spec(steps=n, schedule=Schedule(kind="constant")) for n in (12, 20)]
    assert LAB.with_trunks([*whole, *endless]) == [Job(spec) for spec in (*whole, *endless)]


def test_a_run_that_is_itself_the_trunk_of_others_is_trained_once(make_spec):
    trunk = make_spec(steps=12, schedule=Schedule(kind="constant"))
    ends = [make_spec(steps=20, schedule=Schedule(decay_steps=8, decay=d)) for d in ("linear", "cosine")]
    assert LAB.with_trunks([trunk, *ends]) == [
        Job(trunk, keep=(12,)),
        *[Job(spec, trunk=(trunk.id, 12)) for spec in ends],
    ]


def test_what_a_law_leaves_out_is_said_with_the_run_that_it_is_of():
    sizes = np.array([[n, d] for n in (1e6, 4e6, 1.6e7) for d in (2e7, 8e7, 3.2e8)])
    losses = 1.7 + 400 * sizes[:, 0] ** -0.4 + 400 * sizes[:, 1] ** -0.35
    losses[4] = 10.5
    said = []
    with laws_speak_of([f"run {i}a" for i in range(9)], ["sea"], said.append):
        ScalingLaw().fit(sizes, losses)
    assert len(said) == 1 and "run 4a: 'sea' is 10.5" in said[0]
