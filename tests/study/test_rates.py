"""Rates: measured once, corrected by what runs really had, never mixed up between machines or ways of measuring."""

import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.goodput import EventWriter
from armillary.launch import Job, LocalExecutor, Probe, RankExecutor
from armillary.launch.workers.worker import _measure
from armillary.recipe import Layout, LengthPhase, OptimizerSpec, Schedule, Validation
from armillary.store import Store
from armillary.study.rates import _key, _trained, faster_precision, record_rates, train_rates
from armillary.train import build_optimizer


class Fleet:
    """An executor of which one knows how fast it is; ``asked`` keeps every window it measured."""

    def __init__(self, store, rate=lambda probe, number: 1000.0, n_workers=2, device="astrolabe"):
        self.store, self.rate, self.n_workers, self.device, self.asked = store, rate, n_workers, device, []
        self.corpus, self.checkpoint_every_s = store.folder, 30.0

    def measure(self, probes):
        self.asked += probes
        return [self.rate(probe, number) for number, probe in enumerate(probes)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def probes(make_spec):
    shape = make_spec().model
    return [Probe(shape, 16, batch, precision) for batch in (4, 8) for precision in ("fp32", "bf16")]


def history(store, spec, *stretches, resumed=0):
    """Events of a run: stretches of (steps, seconds), as the loop writes them."""
    folder = store.run_folder(spec.id)
    folder.mkdir(parents=True, exist_ok=True)
    step = resumed
    with EventWriter(folder / "events.jsonl", spec.id) as events:
        events.write("resume" if resumed else "start", step)
        for steps, seconds in stretches:
            step += steps
            events.write("progress", step, seconds)
            events.write("validation", step, 100.0)  # no step of training


def known(store):
    return {(row["batch_sequences"], row["precision"], row["how"]): row["tokens_per_s"] for row in store.rates()}


def test_what_is_known_is_not_measured_again(store, probes):
    first = Fleet(store, lambda probe, number: 100.0 * probe.batch_sequences)
    assert train_rates(first, probes[:2]) == [400.0, 400.0]
    again = Fleet(Store(store.folder), lambda probe, number: 1.0)
    assert train_rates(again, probes) == [400.0, 400.0, 1.0, 1.0]
    assert {(p.batch_sequences, p.precision) for p in again.asked} == {(8, "fp32"), (8, "bf16")}
    other = Fleet(store, lambda probe, number: 7.0, n_workers=3)  # shares its cores otherwise: another machine
    assert train_rates(other, probes[:1]) == [7.0]
    assert {row["about"]["machine"]["workers"] for row in store.rates()} == {2, 3}
    elsewhere = Fleet(store, lambda probe, number: 9.0, device="quadrant")
    assert train_rates(elsewhere, probes[:1]) == [9.0] and train_rates(first, probes[:1]) == [400.0]
    assert {row["device"] for row in store.rates_overview()} == {"astrolabe", "quadrant"}


def test_a_busy_moment_spoils_no_rate(store, probes):
    """Whatever else runs for a third of the time: every shape has windows that it missed."""
    fleet = Fleet(store, lambda probe, number: 10.0 if number < len(probes) else 1000.0)
    assert train_rates(fleet, probes) == [1000.0] * len(probes)


def test_runs_are_believed_more_than_a_probe(store, make_spec):
    spec, fleet = make_spec(), Fleet(store)
    probe = Probe(spec.model, spec.context_length, spec.batch_sequences, spec.precision)
    assert train_rates(fleet, [probe]) == [1000.0]
    history(store, spec, (30, 2.0), (30, 3.0))
    record_rates(fleet, [spec, spec], since=time.time() - 60)
    assert train_rates(fleet, [probe]) == [pytest.approx(2 * 60 * spec.batch_tokens / 5.0)]
    assert len(store.rates()) == 2  # what was probed stays beside it


def test_what_happened_before_or_elsewhere_does_not_count(store, make_spec):
    spec, late, absent, fleet = make_spec(), make_spec(seed=5), make_spec(seed=6), Fleet(store)
    history(store, spec, (1000, 4.0))
    begun = time.time()
    time.sleep(0.01)
    history(store, late, (10, 0.001), resumed=500)  # at once: too short to be believed
    record_rates(fleet, [spec, late, absent], since=begun)
    assert store.rates() == []
    history(store, late, (100, 4.0), resumed=510)
    record_rates(fleet, [spec, late, absent], since=begun - 60)
    (row,) = store.rates()
    tokens = (1000 + 10 + 100) * spec.batch_tokens  # not those that it had when it went on
    assert row["tokens_per_s"] == pytest.approx(2 * tokens / 8.001)


stretch = st.tuples(st.integers(1, 1000), st.floats(3.0, 50.0))


@settings(max_examples=25)
@given(st.lists(stretch, min_size=1, max_size=5))
def test_the_rate_of_studies_one_by_one_is_that_of_all_together(make_spec, tmp_path_factory, stretches):
    folder, since = tmp_path_factory.mktemp("rates"), time.time() - 1000
    one, all_at_once = (Fleet(Store(folder / name, "sqlite://")) for name in ("one", "all"))
    specs = [make_spec(seed=seed) for seed in range(len(stretches))]
    for spec, part in zip(specs, stretches, strict=True):
        history(one.store, spec, part)
        record_rates(one, [spec], since)
        history(all_at_once.store, spec, part)
    record_rates(all_at_once, specs, since)
    (a,), (b,) = one.store.rates(), all_at_once.store.rates()
    assert a["tokens_per_s"] == pytest.approx(b["tokens_per_s"]) and a["seconds"] == pytest.approx(b["seconds"])
    each = [2 * steps * specs[0].batch_tokens / seconds for steps, seconds in stretches]
    assert min(each) * (1 - 1e-9) <= a["tokens_per_s"] <= max(each) * (1 + 1e-9)


def test_a_machine_that_changed_is_learned_within_the_time_remembered(store, make_spec):
    old, new, fleet = make_spec(), make_spec(seed=5), Fleet(store)
    history(store, old, (10_000, 100_000.0))
    record_rates(fleet, [old], since=time.time() - 200_000)
    history(store, new, (10_000, 1200.0))
    record_rates(fleet, [new], since=time.time() - 2000)
    slow, fast = (2 * 10_000 * old.batch_tokens / seconds for seconds in (100_000.0, 1200.0))
    assert fast / 1.6 < store.rates()[0]["tokens_per_s"] < fast and slow < fast / 50


def test_precisions_are_judged_by_the_same_measure(store, make_spec):
    """fp32 is faster by a probe; its runs are slower than a probe of bf16, which says nothing."""
    spec = make_spec()
    fleet = Fleet(store, lambda probe, number: {"fp32": 1000.0, "bf16": 900.0}[probe.precision])
    args = fleet, Probe.of(spec)
    assert faster_precision(*args) == "fp32"
    history(store, spec, (round(10 * 425 / spec.batch_tokens), 10.0))
    record_rates(fleet, [spec], since=time.time() - 60)
    assert known(store)[spec.batch_sequences, "fp32", "runs"] == pytest.approx(850, rel=0.05)
    asked = len(fleet.asked)
    assert faster_precision(*args) == "fp32" and len(fleet.asked) == asked
    half = make_spec(precision="bf16")
    history(store, half, (round(10 * 450 / spec.batch_tokens), 10.0))
    record_rates(fleet, [half], since=time.time() - 60)
    assert faster_precision(*args) == "bf16"  # both have run now


@pytest.mark.slow
def test_runs_of_real_workers_leave_their_rate(tiny_corpus, make_spec, tmp_path):
    specs = [
        make_spec(seed=seed, steps=300, schedule=Schedule(), validation=Validation(windows=2)) for seed in range(4)
    ]
    with LocalExecutor(Store(tmp_path / "store"), tiny_corpus.path, 2) as executor:
        begun, cpu = time.time(), time.perf_counter()
        executor.run("rates", [Job(spec) for spec in specs])
        wall = time.perf_counter() - cpu
        record_rates(executor, specs, begun)
        (row,) = executor.store.rates()
        probe = Probe(specs[0].model, specs[0].context_length, specs[0].batch_sequences, "fp32")
        assert train_rates(executor, [probe]) == [row["tokens_per_s"]]
    tokens = sum(spec.tokens for spec in specs)
    # Two workers are busy for at most twice the wall time, and no step was trained outside of it.
    assert row["how"] == "runs" and row["seconds"] <= 2 * wall and row["tokens_per_s"] >= tokens / wall


def written(store, spec, *events):
    """Events of a run as (kind, step, seconds)."""
    store.run_folder(spec.id).mkdir(parents=True, exist_ok=True)
    with EventWriter(store.run_folder(spec.id) / "events.jsonl", spec.id) as file:
        for kind, step, seconds in events:
            file.write(kind, step, seconds)


def test_a_step_counts_once_however_late_a_checkpoint_is_reported(store, make_spec):
    """A saver that writes beside training reports a checkpoint steps after its own."""
    spec = make_spec()
    written(
        store, spec, ("start", 0, None), ("progress", 100, 10.0), ("progress", 200, 10.0), ("checkpoint", 100, 0.1),
        ("progress", 300, 10.0), ("checkpoint", 200, 0.1), ("end", 300, None),
    )  # fmt: skip
    record_rates(Fleet(store, n_workers=1), [spec], since=time.time() - 100)
    (row,) = store.rates()
    assert row["tokens_per_s"] == pytest.approx(300 * spec.batch_tokens / 30.0) and row["seconds"] == 30.0


def test_a_step_that_was_taken_again_counts_once_with_its_last_time(store, make_spec):
    spec = make_spec()
    written(
        store, spec, ("start", 0, None), ("progress", 100, 10.0), ("progress", 140, 100.0),
        ("resume", 50, None), ("progress", 300, 25.0), ("end", 300, None),
    )  # fmt: skip
    record_rates(Fleet(store, n_workers=1), [spec], since=time.time() - 1000)
    (row,) = store.rates()
    assert row["seconds"] == pytest.approx(5.0 + 25.0)
    assert row["tokens_per_s"] == pytest.approx(300 * spec.batch_tokens / 30.0)


@given(st.lists(st.integers(0, 400), max_size=6), st.data())
def test_no_history_counts_more_steps_than_the_run_has(resumed, data):
    with tempfile.TemporaryDirectory() as folder:
        path, step = Path(folder) / "events.jsonl", 0
        with EventWriter(path, "run") as events:
            events.write("start", 0)
            for again in [*resumed, None]:
                while step < 400 and data.draw(st.booleans()):
                    step = min(400, step + data.draw(st.integers(1, 90)))
                    events.write("progress", step, 1.0)
                    events.write("checkpoint", data.draw(st.integers(0, step)), 0.1)
                if again is not None:
                    step = min(again, step)
                    events.write("resume", step)
        steps, seconds = _trained(path, 0.0)
        assert steps == pytest.approx(step) and seconds >= 0


OTHER = {
    "optimizer": {"optimizer": OptimizerSpec(lr=1e-2, kind="muon")},
    "z_loss": {"optimizer": OptimizerSpec(lr=1e-2, z_loss=1e-4)},
    "accumulation": {"accumulation": 2},
    "lengths": {"lengths": (LengthPhase(start_step=6, context_length=32, batch_sequences=2),)},
    "precision": {"precision": "bf16"},
    "context": {"context_length": 32},
    "batch": {"batch_sequences": 8},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_all_that_decides_the_time_of_a_step_has_a_rate_of_its_own(change, store, make_spec):
    plain, other = make_spec(), make_spec(**change)
    for spec, seconds in ((plain, 4.0), (other, 8.0)):
        history(store, spec, (40, seconds))
        record_rates(Fleet(store), [spec], since=time.time() - 60)
    assert len(store.rates()) == 2
    rates = train_rates(Fleet(store), [Probe.of(plain), Probe.of(other)])
    assert rates == [pytest.approx(2 * 40 * s.batch_tokens / t) for s, t in ((plain, 4.0), (other, 8.0))]


@pytest.mark.parametrize("change", [{"seed": 9}, {"optimizer": OptimizerSpec(lr=1.0, z_loss=0.0, weight_decay=0.5)}])
def test_what_does_not_decide_it_shares_one(change, store, make_spec):
    assert _key(Fleet(store), Probe.of(make_spec())) == _key(Fleet(store), Probe.of(make_spec(**change)))
    some, more = (OptimizerSpec(lr=1e-2, z_loss=value) for value in (1e-4, 1e-3))
    assert _key(Fleet(store), Probe.of(make_spec(optimizer=some))) == _key(
        Fleet(store), Probe.of(make_spec(optimizer=more))
    )


def test_each_layout_of_ranks_is_a_machine_of_its_own(store):
    workers = Fleet(store)
    names = {RankExecutor(workers, layout).device for layout in (Layout(tp=2), Layout(dp_shard=2), Layout(pp=2))}
    assert len(names) == 3 and all(name.startswith("astrolabe, ") for name in names)


def test_a_probe_trains_with_the_optimizer_it_asks_for(make_spec, monkeypatch):
    asked = []

    def build(model, spec):
        asked.append((spec.optimizer.kind, spec.optimizer.z_loss, spec.accumulation))
        return build_optimizer(model, spec)

    monkeypatch.setattr("armillary.train.build_optimizer", build)
    spec = make_spec(optimizer=OptimizerSpec(lr=1e-2, kind="muon", z_loss=1e-4), accumulation=2)
    assert _measure(Probe.of(spec, 0.01), torch.device("cpu")) > 0
    assert asked == [("muon", 1e-4, 2)]
