"""Annealing laws on simulated curves whose law is known, and the schedules that follow from them."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from armillary.laws import (
    AnnealLaw,
    Curve,
    ExtrapolationError,
    ExtrapolationWarning,
    SetAsideWarning,
    best_schedule,
    parse_size,
    read_curve,
    read_curves,
    workbench,
)
from armillary.laws.anneal.curves import profile, without_contradicted
from armillary.laws.anneal.forms import FORMS, law
from armillary.recipe import UsageError

WARMUP = 200
LENGTH = 4000
SMALL = {"warmup_steps": WARMUP, "bootstraps": 20}


def every_step(step, lr, warmup=WARMUP):
    """The rate at each step from 1 on: what a profile must sum up. A drop holds the old rate up to its row."""
    steps = np.arange(warmup + 1, step[-1] + 1)
    before = np.clip(np.searchsorted(step, steps, side="right") - 1, 0, len(step) - 2)
    sudden = lr[before] - lr[before + 1] > 0.3 * lr.max()
    rate = np.where(sudden & (steps < step[before + 1]), lr[before], np.interp(steps, step, lr))
    return np.concatenate([lr[0] * np.arange(1, warmup + 1) / warmup, rate])


def exact_loss(step, lr, *, q=0.55, beta=0.6, size=1e8, m=None):
    """The law summed step by step, as its paper writes it: slow, and without a shortcut.

    With ``m``, a peak of R thousandths costs R^m times as much as one of 0.001, and brings R^q times the progress.
    """
    high = 1.0 if m is None else lr.max() / 1e-3
    rate = every_step(step, lr) / lr.max()
    area, progress = high * np.cumsum(rate), np.cumsum((high * rate) ** q) / LENGTH
    gap = -np.diff(rate, prepend=0.0)
    at = np.flatnonzero(np.abs(gap) > 1e-12)
    loss = []
    for t in step.astype(int) - 1:
        k = at[at <= t]
        passed = (area[t] - area[k] + high * rate[k]) / LENGTH
        gain = gap[k] @ (1 - (1 + 300 * np.maximum(high * rate[k], 1e-3) ** -0.5 * passed) ** -beta)
        loss.append(1 + 0.09 * progress[t] ** -0.47 - 0.05 * high ** (m or 0.0) * gain)
    return 3.3 * (size / 1e8) ** -0.06 * np.array(loss)


def curve(kind, size=1e8, noise=3e-4, seed=0, length=LENGTH, peak=1e-3, every=40, **truth):
    step = np.arange(WARMUP + every, length + 1, every, dtype=float)
    along = (step - WARMUP) / (length - WARMUP)
    lr = (
        peak
        * {
            "constant": np.ones_like(step),
            "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * along)),
            "wsd": np.where(along < 0.7, 1.0, 1.0 - 0.9 * (along - 0.7) / 0.3),
            "drop": np.where(along < 0.5, 1.0, 0.3),
            "low": np.where(along < 0.3, 1.0, 0.15),
        }[kind]
    )
    loss = exact_loss(step, lr, size=size, **truth)
    rng = np.random.default_rng(seed)
    # A run's own early luck, and noise from row to row.
    shift = noise * rng.standard_normal() * np.exp(-step / (length / 4))
    return Curve(f"{kind}_{length}", size, step, lr, loss * (1 + shift + noise * rng.standard_normal(len(step))))


def three(size=1e8, **kwargs):
    return [curve(kind, size, seed=i, **kwargs) for i, kind in enumerate(("constant", "cosine", "drop"))]


def error(predicted, wanted):
    return np.abs(predicted.mean / wanted.loss - 1).mean()


@pytest.mark.parametrize("kind", ["constant", "cosine", "drop"])
def test_profile_sums_what_a_loop_over_all_steps_sums(kind):
    one = curve(kind)
    found = profile(one, WARMUP, one.lr.max(), 1.0)
    rate = every_step(one.step, one.lr) / one.lr.max()
    # Where a drop stands between two rows of 40 steps, half of them may be taken for the other rate.
    atol = 1.0 + 20 * 0.7 * (kind == "drop")
    np.testing.assert_allclose(found.area, np.cumsum(rate)[one.step.astype(int) - 1], rtol=0.001, atol=atol)
    assert (found.gap_begin - found.gap_end).sum() == pytest.approx(-one.lr[-1] / one.lr.max())
    np.testing.assert_allclose(found.dwell.sum(1), one.step - WARMUP, rtol=1e-9)
    assert len(found.gap_end) < 200


def test_a_slope_seen_at_two_rows_counts_as_if_seen_at_all():
    dense = curve("wsd", every=10)
    flat = np.flatnonzero(dense.lr == dense.lr[0])[-1]
    kept = np.array([0, flat, len(dense.step) - 1])
    sparse = Curve("sparse", dense.size, dense.step[kept], dense.lr[kept])
    fitted = AnnealLaw(form="multi-power", **SMALL).fit(three())
    assert fitted.predict(sparse).mean[-1] == pytest.approx(fitted.predict(dense).mean[-1], rel=2e-4)


@pytest.mark.parametrize("name", FORMS)
def test_slopes_are_those_of_finite_differences(name):
    form = FORMS[name]
    theta = form.centre + 0.1
    schedule = profile(curve("wsd"), WARMUP, 0.7e-3, LENGTH)
    _, slope = law(form, theta[None], schedule)
    for k in range(len(theta)):
        there, back = theta.copy(), theta.copy()
        there[k], back[k] = theta[k] + 1e-6, theta[k] - 1e-6
        numeric = (law(form, there[None], schedule)[0] - law(form, back[None], schedule)[0]) / 2e-6
        np.testing.assert_allclose(slope[0, :, k], numeric[0], atol=1e-7)


def test_unseen_schedules_are_foretold_and_their_intervals_cover():
    misses, inside = [], []
    for seed, (q, beta) in enumerate([(0.4, 0.6), (0.55, 0.9), (0.8, 0.6), (1.0, 0.4)]):
        fitted = AnnealLaw(**SMALL).fit(three(q=q, beta=beta))
        for kind, length in (("wsd", LENGTH), ("low", LENGTH), ("cosine", 2 * LENGTH)):
            wanted = curve(kind, length=length, seed=10 + seed, q=q, beta=beta)
            found = fitted.predict(wanted)
            misses.append(error(found, wanted))
            inside.append(((found.low <= wanted.loss) & (wanted.loss <= found.high)).mean())
    print(f"\nsimulated schedules: PredE {np.mean(misses):.5f}, {np.mean(inside):.0%} inside")
    assert np.mean(misses) < 0.0015
    assert np.mean(inside) > 0.82


def test_one_constant_curve_at_a_new_size_gives_the_other_schedules_there():
    known = three() + three(4e8)
    constant, wanted = curve("constant", 1.6e9, seed=7), curve("wsd", 1.6e9, seed=8)
    fitted = AnnealLaw(**SMALL).fit(known)
    later = fitted.predict(wanted, given=constant)
    alone = fitted.predict(wanted)
    before = AnnealLaw(**SMALL).fit([*known, constant]).predict(wanted)
    assert error(later, wanted) < 0.0012
    assert error(before, wanted) < 0.0012
    assert ((later.low <= wanted.loss) & (wanted.loss <= later.high)).mean() > 0.8
    assert (alone.high - alone.low)[-1] > 1.5 * (later.high - later.low)[-1]
    assert alone.low[-1] < wanted.loss[-1] < alone.high[-1]


def test_held_out_schedules_are_on_record():
    fitted = AnnealLaw(**SMALL).fit(three() + three(4e8))
    record = {(one.name, one.size, one.new_size) for one in fitted.held_out_}
    assert {
        (f"{kind}_{LENGTH}", size, False) for kind in ("constant", "cosine", "drop") for size in (1e8, 4e8)
    } < record
    assert any(one.new_size for one in fitted.held_out_)
    for one in fitted.held_out_:
        assert one.error == pytest.approx(np.abs(one.predicted / one.measured - 1).mean())


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(rate=st.floats(1e-6, 1e6), nats=st.floats(0.1, 10), steps=st.integers(2, 500))
def test_units_do_not_matter(rate, nats, steps):
    plain = AnnealLaw(form="progress", **SMALL).fit(three())
    turned = [
        dataclasses.replace(one, step=one.step * steps, lr=one.lr * rate, loss=one.loss * nats) for one in three()
    ]
    other = AnnealLaw(form="progress", warmup_steps=WARMUP * steps, bootstraps=20).fit(turned)
    asked = curve("wsd")
    found = other.predict(dataclasses.replace(asked, step=asked.step * steps, lr=asked.lr * rate))
    for a, b in zip(found, plain.predict(asked), strict=True):
        np.testing.assert_allclose(a / nats, b, rtol=1e-4)


def test_contract_of_an_estimator():
    curves = three()
    fitted = AnnealLaw(**SMALL)
    assert set(vars(fitted)) == {"form", "warmup_steps", "bootstraps", "seed"}
    assert fitted.fit(curves) is fitted
    again, other = AnnealLaw(**SMALL).fit(curves[::-1]), AnnealLaw(**SMALL, seed=1).fit(curves)
    wanted = curve("wsd")
    wide, narrow = fitted.predict(wanted), fitted.predict(wanted, interval=0.5)
    for a, b in zip(wide, again.predict(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (other.predict(wanted).low != wide.low).any()
    assert (wide.low < narrow.low).all() and (narrow.low < wide.mean).all() and (narrow.high < wide.high).all()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_give_wide_but_finite_intervals(rows):
    whole = curve("constant")
    few = dataclasses.replace(whole, step=whole.step[-rows:], lr=whole.lr[-rows:], loss=whole.loss[-rows:])
    found = AnnealLaw(**SMALL).fit([few]).predict(curve("cosine"))
    assert np.isfinite(found.low).all() and (found.low > 0).all()
    assert (found.high / found.low > 1.004).all() and (found.high / found.low < 3).all()


def test_no_absurd_loss_at_the_very_first_steps():
    fitted = AnnealLaw(**SMALL).fit(three())
    start = fitted.predict(Curve("start", 1e8, np.array([0.0, 1, 300]), np.array([0.0, 1e-5, 1e-3])))
    assert np.isfinite(start.high).all() and start.mean.max() < 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [np.nan, 3.0]}, "row 0, column 'loss'"),
        ({"loss": [3.0, -1.0]}, "row 1, column 'loss'"),
        ({"lr": [1e-3, -1e-3]}, "row 1, column 'lr'"),
        ({"lr": [0.0, 0.0]}, "column 'lr' is 0 in every row"),
        ({"step": [2.0, 2.0]}, "row 1, column 'step' is 2"),
        ({"loss": [3.0]}, r"column 'loss' has shape \[1\]"),
        ({"size": -1.0}, "size must be"),
    ],
)
def test_bad_curves_are_refused_by_row_and_column(change, message):
    good = Curve("good", 1e8, np.array([1.0, 2.0]), np.array([1e-3, 1e-3]), np.array([3.0, 2.9]))
    bad = dataclasses.replace(good, **{k: np.array(v) if isinstance(v, list) else v for k, v in change.items()})
    with pytest.raises(UsageError, match=message):
        AnnealLaw(**SMALL).fit([bad])


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="not fitted"):
        AnnealLaw().predict(curve("wsd"))
    for arguments, message in (
        ({"form": "cosine"}, "form"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"bootstraps": 1}, "bootstraps"),
    ):
        with pytest.raises(UsageError, match=message):
            AnnealLaw(**arguments).fit(three())
    with pytest.raises(UsageError, match="no curve"):
        AnnealLaw().fit([])
    with pytest.raises(UsageError, match="two curves"):
        AnnealLaw().fit([curve("wsd"), curve("wsd")])
    fitted = AnnealLaw(form="tissue", **SMALL).fit(three())
    with pytest.raises(UsageError, match="given curve is of size"):
        fitted.predict(curve("wsd"), given=curve("constant", 2e8))
    with pytest.raises(UsageError, match="interval"):
        fitted.predict(curve("wsd"), interval=1.0)


def test_curves_are_read_by_size_and_refused_by_line(tmp_path):
    (tmp_path / "1.3B").mkdir()
    (tmp_path / "25M").mkdir()
    (tmp_path / "1.3B" / "cosine.csv").write_text("step,lr,loss\n10,1e-3,4\n20,5e-4,3.5\n")
    (tmp_path / "25M" / "wsd.csv").write_text("step,lr,loss\n10,1e-3,4\n20,5e-4,3.5\n")
    found = read_curves(tmp_path)
    assert [(one.name, one.size) for one in found] == [("wsd", 25e6), ("cosine", 1.3e9)]
    np.testing.assert_array_equal(found[1].loss, [4, 3.5])
    asked = tmp_path / "new.csv"
    asked.write_text("step,lr\n10,1e-3\n20,5e-4\n")
    assert read_curve(asked, 1e9, need_loss=False).loss is None
    with pytest.raises(UsageError, match="loss"):
        read_curve(asked, 1e9)
    for text, message in (
        ("step,lr,loss\n10,1e-3,4\n10,1e-3,4\n", "line 3, column 'step'"),
        ("step,lr,loss\n10,-1e-3,4\n", "line 2, column 'lr'"),
        ("step,lr,loss\n10,1e-3,0\n", "line 2, column 'loss'"),
        ("step,lr,loss\n10,1e-3,nan\n", "line 2, column 'loss'"),
    ):
        asked.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_curve(asked, 1e9)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "wsd.csv").write_text("step,lr,loss\n10,1e-3,4\n")
    with pytest.raises(UsageError, match="'large' is not a model size"):
        read_curves(tmp_path)
    assert (parse_size("400m"), parse_size("7B"), parse_size("25000000")) == (4e8, 7e9, 2.5e7)


def test_best_schedule_beats_the_fitted_ones_where_the_truth_is_known():
    found = best_schedule(AnnealLaw(form="progress", **SMALL).fit(three()), size=1e8, steps=LENGTH)
    truth = {
        kind: exact_loss(np.linspace(WARMUP + 40, LENGTH, 95).round(), one.lr)[-1]
        for kind, one in ((k, curve(k)) for k in ("constant", "cosine", "wsd", "low"))
    }
    step = found.curve.step[1:].round()
    chosen = exact_loss(step, np.interp(step, found.curve.step, found.curve.lr))[-1]
    assert chosen < min(truth.values())
    assert found.chosen.low < chosen < found.chosen.high
    # Never below the lowest rate fitted, never rising, and the free shape is no worse than a named one by much.
    assert found.chosen.end >= 0.1 - 1e-9 and found.free_curve.lr.min() >= 0.99e-4
    assert (np.diff(found.curve.lr) <= 1e-12).all() and (np.diff(found.free_curve.lr) <= 1e-12).all()
    assert found.free.loss < found.options[0].loss + 1e-3
    assert all(ending.lost >= -1e-4 for ending in found.endings)
    assert found.chosen.excess == 0 and found.nearby and found.decay_start < LENGTH


def test_absurd_schedules_are_refused():
    fitted = AnnealLaw(form="progress", **SMALL).fit(three())
    with pytest.raises(ExtrapolationError, match="times the longest"):
        best_schedule(fitted, size=1e8, steps=100 * LENGTH)
    with pytest.raises(ExtrapolationError, match="peak_lr"):
        best_schedule(fitted, size=1e8, steps=LENGTH, peak_lr=1.0)
    with pytest.raises(UsageError, match="peak_lr"):
        best_schedule(fitted, size=1e9, steps=LENGTH)
    with pytest.raises(UsageError, match="warm-up"):
        best_schedule(fitted, size=1e8, steps=WARMUP)


def test_a_jump_between_sampled_rows_stands_where_it_is_wrong_by_the_least():
    # Every 10 steps, and a row at step 53 that is there because of the jump: it stands at 53.
    step = np.sort(np.append(np.arange(0.0, 101.0, 10.0), 53.0))
    exact = profile(Curve("a", 1e6, step, np.where(step < 53, 1.0, 0.1)), 0, 1.0, 1.0)
    assert exact.area[-1] == pytest.approx(53 + 4.7)
    # Without that row it was anywhere between 50 and 60.
    step = np.arange(0.0, 101.0, 10.0)
    guessed = profile(Curve("a", 1e6, step, np.where(step < 53, 1.0, 0.1)), 0, 1.0, 1.0)
    assert guessed.area[-1] == pytest.approx(55 + 4.5)
    fall = guessed.gap_begin > guessed.gap_end
    assert guessed.gap_time[fall] == pytest.approx([55]) and guessed.gap_area[fall] == pytest.approx([55])
    assert (guessed.gap_begin[fall], guessed.gap_end[fall]) == (pytest.approx([1.0]), pytest.approx([0.1]))
    assert guessed.gap_rate[fall] == pytest.approx([0.1])


def write_curves(folder, curves):
    for one in curves:
        path = folder / f"{one.size / 1e6:g}M" / f"{one.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(one.step, one.lr, one.loss, strict=True)
        path.write_text("step,lr,loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    return folder


def test_peak_rates_that_the_curves_do_not_tell_apart_are_refused_with_files_and_rates(tmp_path):
    # Rates that differ by an eighth say nothing about what a rate costs.
    curves = [curve("constant"), curve("cosine", peak=1.12e-3), curve("constant", size=4e8, peak=5e-4)]
    with pytest.raises(
        UsageError, match=r"size 1e\+08 have several peak learning rates.*'constant_4000'.*: 0\.001;.*0112"
    ):
        AnnealLaw(**SMALL).fit(curves)
    folder = write_curves(tmp_path / "curves", curves)
    with pytest.raises(UsageError, match=r"100M/constant_4000\.csv: 0\.001; .*100M/cosine_4000\.csv: 0\.00112"):
        workbench.fit_anneal(folder, WARMUP)
    # Sizes may differ in their rate, and a cosine that is sampled late has the same.
    fitted = AnnealLaw(**SMALL).fit([curve("constant"), curve("cosine", peak=0.97e-3), curves[2]])
    with pytest.raises(UsageError, match=r"has a peak learning rate of 0\.002, and size 1e\+08 was fitted at 0\.001"):
        fitted.predict(curve("constant", peak=2e-3))
    with pytest.raises(UsageError, match="several peak learning rates"):
        fitted.predict(curve("wsd"), given=curve("cosine", peak=1.12e-3))


def test_curves_at_two_peak_rates_forecast_schedules_at_both():
    misses, inside = [], []
    for seed, m in enumerate((0.3, 0.5, 0.7)):
        known = [
            curve(kind, peak=peak, seed=seed, m=m)
            for kind, peak in (("constant", 1e-3), ("wsd", 1e-3), ("cosine", 2e-3))
        ]
        fitted = AnnealLaw(**SMALL).fit(known)
        for kind, peak in (("wsd", 2e-3), ("cosine", 1e-3), ("wsd", 1.4e-3)):
            wanted = curve(kind, peak=peak, seed=10 + seed, m=m)
            found = fitted.predict(wanted)
            misses.append(error(found, wanted))
            inside.append(((found.low <= wanted.loss) & (wanted.loss <= found.high)).mean())
        with pytest.raises(UsageError, match=r"was fitted at 0\.001 to 0\.002"):
            fitted.predict(curve("wsd", peak=4e-3))
    print(f"\ntwo rates: PredE {np.mean(misses):.5f}, {np.mean(inside):.0%} inside")
    assert np.mean(misses) < 0.002
    assert np.mean(inside) > 0.82
    # The best peak lies between the two, or is one of them.
    best = best_schedule(fitted, size=1e8, steps=LENGTH)
    assert 1e-3 <= best.curve.lr.max() <= 2e-3 * 1.0001
    alone = [best_schedule(fitted, size=1e8, steps=LENGTH, peak_lr=peak).chosen.loss for peak in (1e-3, 2e-3)]
    assert best.chosen.loss < min(alone) + 1e-4


def test_a_size_where_nothing_was_left_out_is_untested():
    three_sizes = [*three(1e8), curve("constant", 2e8), curve("constant", 4e8)]
    fitted = AnnealLaw(**SMALL).fit([*three(1e8), curve("constant", 4e8)])
    with pytest.warns(ExtrapolationWarning, match=r"size 2e\+08 is untested: no curve was fitted at this size"):
        fitted.predict(curve("cosine", 2e8))
    with pytest.warns(ExtrapolationWarning, match=r"size 8e\+08 is untested"):
        fitted.predict(curve("cosine", 8e8))
    # One curve each beside the first size: no size was left out but for one curve.
    with pytest.warns(
        ExtrapolationWarning, match=r"size 4e\+08 is untested: one curve was fitted at this size, and no other size"
    ):
        AnnealLaw(**SMALL).fit(three_sizes).predict(curve("cosine", 4e8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(curve("wsd", 1e8))
        AnnealLaw(**SMALL).fit([*three(1e8), *three(4e8)]).predict(curve("wsd", 1e8))


def test_spikes_bad_losses_and_diverged_curves_are_left_out_and_named(tmp_path):
    sound = three()
    clean = AnnealLaw(**SMALL).fit(sound)
    assert clean.set_aside_ == []
    spiked = sound[0].loss.copy()
    spiked[40] = 10.5
    broken = [dataclasses.replace(sound[0], loss=spiked), *sound[1:]]
    diverged = sound[2].loss.copy()
    diverged[60:] = np.linspace(4, 10, len(diverged) - 60)
    broken.append(dataclasses.replace(sound[2], name="diverged", loss=diverged))
    broken.append(dataclasses.replace(sound[2], name="flat", loss=np.full_like(diverged, 10.8)))
    with pytest.warns(SetAsideWarning, match=r"3 left out of the fit: curve 'constant_4000' .*a spike of 10\.5"):
        law = AnnealLaw(**SMALL).fit(broken)
    assert {(one.name, one.step) for one in law.set_aside_} == {
        ("constant_4000", sound[0].step[40]),
        ("diverged", None),
        ("flat", None),
    }
    asked = curve("wsd")
    np.testing.assert_allclose(law.predict(asked).mean, clean.predict(asked).mean, rtol=1e-3)
    folder = write_curves(tmp_path / "curves", broken)
    path = folder / "100M" / "cosine_4000.csv"
    lines = path.read_text().splitlines()
    lines[9] = ",".join([*lines[9].split(",")[:2], "nan"])
    path.write_text("\n".join(lines))
    with pytest.warns(SetAsideWarning) as said:
        file = workbench.fit_anneal(folder, WARMUP)
    texts = [str(warning.message) for warning in said]
    assert any("cosine_4000.csv: left out 1 row without a loss: column 'loss' of line 10 is 'nan'" in t for t in texts)
    assert any("100M/diverged.csv: it diverged" in text for text in texts)
    where = {(one["file"], one["line"]) for one in file.set_aside}
    assert where == {
        ("100M/constant_4000.csv", 42),
        ("100M/diverged.csv", None),
        ("100M/flat.csv", None),
        ("100M/cosine_4000.csv", 10),
    }
    workbench.save(tmp_path / "law.json", file)
    workbench.predict(tmp_path / "law.json", folder / "100M" / "drop_4000.csv")
    with pytest.raises(UsageError, match="every curve diverged"), pytest.warns(SetAsideWarning):
        AnnealLaw(**SMALL).fit([dataclasses.replace(sound[2], loss=diverged)])


@pytest.mark.parametrize("noise", [0.02, 0.06])
def test_a_short_noisy_curve_has_not_diverged(noise):
    """Losses of single batches of a small model: the lowest is far below the last ones, and nothing is wrong."""
    step = np.arange(1.0, 41.0)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        loss = (1.5 + 0.2 * np.exp(-step / 8)) * np.exp(noise * rng.standard_normal(len(step)))
        steady = [Curve(f"constant_{i}", 1e6, step, np.full(len(step), 1e-3), loss) for i in range(2)]
        kept, aside = without_contradicted(steady)
        assert [one for one in aside if one.step is None] == [] and len(kept) == 2


def test_the_warmup_of_a_schedule_counts_in_its_forecast():
    """A law fitted with one warm-up is asked for a run with a longer one."""
    law = AnnealLaw(**SMALL).fit([curve("constant"), curve("cosine")])
    schedule = curve("cosine")
    usual, same, longer = (
        law.predict(dataclasses.replace(schedule, warmup_steps=warmup)).mean for warmup in (None, WARMUP, 20 * WARMUP)
    )
    np.testing.assert_array_equal(usual, same)
    assert np.abs(longer / usual - 1).max() > 1e-4
    for warmup in (-1, np.nan, np.inf):
        with pytest.raises(UsageError, match=r"warmup_steps is .*; give the steps of the warm-up"):
            law.predict(dataclasses.replace(schedule, warmup_steps=warmup))
