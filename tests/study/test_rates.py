"""Rates: measured once, corrected by what runs really had, never mixed up between machines or ways of measuring."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.goodput import EventWriter
from armillary.recipe import Schedule, Validation
from armillary.study import Job, LocalExecutor, Probe, Store
from armillary.study.rates import faster_precision, record_rates, train_rates


class Fleet:
    """An executor of which one knows how fast it is; ``asked`` keeps every window it measured."""

    def __init__(self, store, rate=lambda probe, number: 1000.0, n_workers=2, device="astrolabe"):
        self.store, self.rate, self.n_workers, self.device, self.asked = store, rate, n_workers, device, []

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
    args = fleet, spec.model, spec.context_length, spec.batch_sequences
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
