"""Runs in a stack equal the runs trained alone, bit for bit, also if others join, finish, stop or diverge."""

import errno
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from armillary.corpus import Batch
from armillary.goodput import EventWriter, read_events
from armillary.recipe import MixturePhase, ModelShape, OptimizerSpec, RunResult, Schedule, UsageError, Validation
from armillary.train import (
    Assignment,
    BusyRunError,
    DivergedError,
    Fleet,
    InterruptedRunError,
    Stack,
    Trunk,
    member_bytes,
    stack_capacity,
    train_fleet,
    train_run,
)
from armillary.train.hooks import Metrics, Save


def mixture(sky, sea):
    return (MixturePhase(start_step=0, weights={"sky": sky, "sea": sea, "code": 1 - sky - sea}),)


@pytest.fixture(scope="module")
def different(make_spec):
    """Six runs that differ in everything in which members of a stack may differ."""
    return [
        make_spec(seed=1),
        make_spec(seed=2, steps=9, mixture=mixture(0.1, 0.1)),
        make_spec(seed=3, steps=30, optimizer=OptimizerSpec(lr=3e-3, weight_decay=0.3, grad_clip=0.7)),
        make_spec(seed=3, schedule=Schedule(kind="cosine", warmup_steps=3), validation=Validation(every=4, windows=70)),
        make_spec(seed=4, steps=1, schedule=Schedule(kind="constant")),
        make_spec(seed=5, optimizer=OptimizerSpec(lr=2e-2, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.0)),
    ]


@pytest.mark.parametrize("capacity", [1, 2, 6, 9])
def test_every_member_is_the_run_trained_alone(capacity, different, tiny_corpus, tmp_path, undisturbed, outcome):
    """With fewer places than runs, a run takes the place of a finished one and has its own steps."""
    runs = [Assignment(spec, tmp_path / spec.id) for spec in different]
    told = {spec.id: [] for spec in different}
    results = dict(train_fleet(runs, tiny_corpus, capacity, progress=lambda run, step: told[run].append(step)))
    for spec in different:
        assert isinstance(results[spec.id], RunResult)
        assert outcome(tmp_path / spec.id) == undisturbed(spec)
        assert told[spec.id] == list(range(1, spec.steps + 1))
    assert dict(train_fleet(runs, tiny_corpus, capacity)) == results


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hundred_steps_in_a_stack(accumulation, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    specs = [
        make_spec(
            steps=100 - 7 * seed,
            seed=seed,
            accumulation=accumulation,
            mixture=mixture(0.1 * seed, 0.5),
            optimizer=OptimizerSpec(lr=1e-3 * 3**seed, z_loss=1e-3),
            schedule=Schedule(warmup_steps=5, decay_steps=10 + 20 * seed, decay="cosine"),
        )
        for seed in range(4)
    ]
    dict(train_fleet([Assignment(spec, tmp_path / spec.id) for spec in specs], tiny_corpus, 4))
    assert all(outcome(tmp_path / spec.id) == undisturbed(spec) for spec in specs)


def test_runs_go_from_a_stack_to_themselves_and_back(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    specs = [make_spec(seed=seed, steps=20) for seed in range(3)]
    runs = {spec.id: Assignment(spec, tmp_path / spec.id) for spec in specs}
    steps = {spec.id: [] for spec in specs}

    def tell(run, step):
        steps[run].append(step)

    for until, alone in ((4, specs[1]), (9, specs[0]), (13, specs[2])):

        def at_step(run, until=until):
            return steps[run][-1:] == [until]

        with pytest.raises(InterruptedRunError, match=f"stopped after step {until} of 20"):
            train_run(
                alone,
                tiny_corpus,
                tmp_path / alone.id,
                progress=partial(tell, alone.id),
                stop=partial(at_step, alone.id),
            )
        together = [run for name, run in runs.items() if name != alone.id]
        stopped = dict(train_fleet(together, tiny_corpus, 3, progress=tell, stop=at_step))
        assert all(isinstance(error, InterruptedRunError) for error in stopped.values())
    dict(train_fleet(list(runs.values()), tiny_corpus, 3, progress=tell))
    assert all(outcome(tmp_path / spec.id) == undisturbed(spec) for spec in specs)
    assert all(told == list(range(1, 21)) for told in steps.values())  # no step is taken twice


def test_who_stops_or_diverges_leaves_and_the_others_do_not_notice(
    make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    wild = make_spec(steps=60, optimizer=OptimizerSpec(lr=1e30, grad_clip=1e30))
    broken = make_spec(steps=1, schedule=Schedule(kind="constant"), optimizer=OptimizerSpec(lr=1e38))
    stopped = make_spec(steps=60, seed=9)
    others = [make_spec(steps=60, seed=seed) for seed in range(3)]
    specs = [others[0], wild, others[1], broken, stopped, others[2]]
    results = dict(
        train_fleet(
            [Assignment(spec, tmp_path / spec.id) for spec in specs],
            tiny_corpus,
            5,  # the last one takes the place of who leaves first
            stop=lambda run: run == stopped.id and (tmp_path / others[2].id / "events.jsonl").exists(),
        )
    )
    assert isinstance(results[wild.id], DivergedError) and "lower the learning rate (1e+30)" in str(results[wild.id])
    assert "at step 1 the validation loss on 'sky' is nan" in str(results[broken.id])
    assert isinstance(results[stopped.id], InterruptedRunError)
    assert all(outcome(tmp_path / spec.id) == undisturbed(spec) for spec in others)
    train_run(stopped, tiny_corpus, tmp_path / stopped.id)
    assert outcome(tmp_path / stopped.id) == undisturbed(stopped)
    with pytest.raises(DivergedError) as alone:
        train_run(wild, tiny_corpus, tmp_path / "alone")
    assert str(alone.value) == str(results[wild.id])  # at the same step, with the same numbers


def test_members_branch_from_a_trunk_and_leave_checkpoints_to_branch_from(
    make_spec, tiny_corpus, tmp_path, undisturbed, outcome
):
    trunk = make_spec(steps=9, schedule=Schedule(kind="constant"), seed=20)
    other = make_spec(seed=21)
    dict(
        train_fleet(
            [Assignment(trunk, tmp_path / trunk.id, keep=(6, 9)), Assignment(other, tmp_path / other.id)],
            tiny_corpus,
            2,
        )
    )
    branches = [make_spec(schedule=Schedule(decay_steps=steps), seed=20) for steps in (6, 3)]
    dict(
        train_fleet(
            [
                Assignment(spec, tmp_path / spec.id, Trunk(tmp_path / trunk.id, 12 - spec.schedule.decay_steps))
                for spec in branches
            ],
            tiny_corpus,
            2,
        )
    )
    for spec in (trunk, other, *branches):
        assert outcome(tmp_path / spec.id) == undisturbed(spec)
    begun = [next(read_events(tmp_path / spec.id / "events.jsonl")).step for spec in branches]
    assert begun == [6, 9]


def test_the_times_of_members_add_up_to_the_time_of_the_stack(make_spec, tiny_corpus, tmp_path):
    specs = [make_spec(seed=seed, steps=40, validation=Validation(windows=4)) for seed in range(4)]
    begin = time.perf_counter()
    results = dict(train_fleet([Assignment(spec, tmp_path / spec.id) for spec in specs], tiny_corpus, 4))
    assert sum(result.wall_s for result in results.values()) < time.perf_counter() - begin


def test_what_does_not_fit_into_a_stack_is_refused_and_what_is_busy_waits(make_spec, tiny_corpus, tmp_path):
    first, wider = make_spec(), make_spec(context_length=17)
    with Fleet(first, tiny_corpus, 1) as fleet:
        with pytest.raises(
            UsageError, match=f"run {wider.id}: shape, context length, .* must equal those of the stack"
        ):
            fleet.add(Assignment(wider, tmp_path / "wider"))
        fleet.add(Assignment(first, tmp_path / "run"))
        with pytest.raises(UsageError, match="all 1 slots are in use"):
            fleet.add(Assignment(make_spec(seed=8), tmp_path / "other"))
        with Fleet(first, tiny_corpus, 1) as second, pytest.raises(BusyRunError, match="another process is training"):
            second.add(Assignment(first, tmp_path / "run"))
        fleet.step()
    assert not (tmp_path / "other").exists()
    train_run(first, tiny_corpus, tmp_path / "run")  # the folder has been let go


def test_one_folder_that_cannot_be_used_costs_only_its_run(make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    good, elsewhere, foreign = make_spec(), make_spec(corpus="0123456789abcdef"), make_spec(mixture=mixture(0.1, 0.2))
    (tmp_path / foreign.id).mkdir()
    (tmp_path / foreign.id / "spec.json").write_text(good.model_dump_json())
    results = dict(
        train_fleet([Assignment(spec, tmp_path / spec.id) for spec in (elsewhere, foreign, good)], tiny_corpus, 3)
    )
    assert "belongs to corpus 0123456789abcdef" in str(results[elsewhere.id])
    assert "belongs to run" in str(results[foreign.id])
    assert outcome(tmp_path / good.id) == undisturbed(good)


def full_disk(*values, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (EventWriter, "write"),  # events.jsonl
        (Metrics, "append"),
        (Save, "report"),
    ],
)
def test_a_member_whose_records_cannot_be_written_fails_alone(
    part, name, make_spec, tiny_corpus, tmp_path, undisturbed, outcome, monkeypatch
):
    """The full disk is one member's; its progress fails at step 8, when 8 of its 12 steps are recorded or pending."""
    good, bad, late = make_spec(seed=1, steps=40), make_spec(seed=2, steps=40), make_spec(seed=3, steps=40)
    whole, full = getattr(part, name), []

    def write(self, *values, **named):
        mine = bad.id in str(vars(self)) or any(getattr(value, "spec", None) == bad for value in values)
        return (full_disk if full and mine else whole)(self, *values, **named)

    monkeypatch.setattr(part, name, write)
    told = lambda run, step: full.append(step) if run == bad.id and step == 8 else None  # noqa: E731
    runs = [Assignment(spec, tmp_path / spec.id) for spec in (bad, good, late)]
    results = dict(train_fleet(runs, tiny_corpus, 2, progress=told))
    assert isinstance(results[bad.id], OSError) and "No space left" in str(results[bad.id])
    for spec in (good, late):
        assert outcome(tmp_path / spec.id) == undisturbed(spec)
    monkeypatch.undo()
    train_run(bad, tiny_corpus, tmp_path / bad.id)
    assert outcome(tmp_path / bad.id) == undisturbed(bad)


@pytest.mark.parametrize("place", ["progress", "batch", "close"])
def test_an_error_of_one_member_reaches_no_other(place, make_spec, tiny_corpus, tmp_path, undisturbed, outcome):
    good, bad, late = make_spec(seed=1, steps=40), make_spec(seed=2, steps=40), make_spec(seed=3, steps=40)
    results = {}
    with Fleet(good, tiny_corpus, 3) as fleet:
        for spec in (bad, good, late):
            fleet.add(
                Assignment(spec, tmp_path / spec.id),
                lambda step, spec=spec: full_disk() if (place, step, spec) == ("progress", 8, bad) else None,
                lambda spec=spec: place == "close" and spec == bad,
            )
        if place == "batch":
            fleet.runs[0].order = SimpleNamespace(batch=full_disk)
        if place == "close":
            fleet._close[0].callback(full_disk)
        while fleet.runs:
            results |= fleet.step()
    assert place == "close" or "No space left" in str(results[bad.id])
    assert isinstance(results[bad.id], InterruptedRunError if place == "close" else OSError)
    assert all(outcome(tmp_path / spec.id) == undisturbed(spec) for spec in (good, late))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_estimate_of_a_members_memory_covers_what_a_step_keeps(precision, make_spec):
    shape = ModelShape(n_layers=4, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=176, vocab_size=300)
    spec = make_spec(model=shape, precision=precision, context_length=64, batch_sequences=8)
    stack = Stack(spec, 3, torch.device("cpu"))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stack.step([(spec, 0)] * 3, [Batch(torch.zeros(8, 65, dtype=torch.int64))] * 3)
    measured = (sum(kept.values()) + 4 * 4 * 3 * spec.model.parameters) / 3
    assert measured < member_bytes(spec) < 3 * measured
    assert stack_capacity(spec, 7, torch.device("cpu")) == 7
    larger = make_spec(context_length=10**9)
    assert stack_capacity(larger, 7, torch.device("cpu")) == 1
