"""Each sentence of the report against the data: generated outcomes, and what is true of them by a count of our own."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from armillary.report import (
    AnnealPart,
    AnnealRow,
    ArmRow,
    BreakEven,
    CandidateRow,
    Chain,
    DifferenceRow,
    DomainRow,
    FailureRow,
    LadderPart,
    LadderPoint,
    LrLine,
    LrPart,
    MixtureChoice,
    MixturePart,
    Multiplier,
    Note,
    Phase,
    PredictionPart,
    PredictionRow,
    Question,
    Recipe,
    ReportData,
    write_report,
)
from armillary.report.charts import ladder_figure
from armillary.report.text import STRINGS, Words

SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def page(tmp_path: Path, language: str = "en", **parts: Any) -> str:
    """The text of a report of these parts, without tags and charts."""
    data = ReportData("r", Question({"a": 1.0}, "m"), "2026-01-01T00:00:00", "0", **parts)
    path = tmp_path / f"{language}.html"
    write_report(data, path, language)  # type: ignore[arg-type]
    html = re.sub(r"<(style|svg)[^>]*>.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


losses = st.floats(2.0, 6.0).map(lambda v: round(v, 3))


# --- the choice among annealings -----------------------------------------------------------------------------------


@st.composite
def annealings(draw: st.DrawFn) -> AnnealPart:
    """A study as ``best_of`` leaves it: the reference, and the others of which some lack a seed."""
    count = draw(st.integers(1, 5))
    seeds = draw(st.integers(1, 3))
    rows = []
    for i in range(count):
        whole = i == 0 or draw(st.booleans())
        measured = draw(st.lists(losses, min_size=seeds, max_size=seeds)) if whole else []
        rows.append(AnnealRow(0.1 * (i + 1), draw(st.sampled_from(["linear", "1-sqrt"])), measured, complete=whole))
    others = [i for i in range(1, count) if rows[i].complete]
    if not others:
        return AnnealPart(rows, chosen=0, significant=False, reference=0)
    best = min(others, key=lambda i: fmean(rows[i].losses))
    difference = fmean(rows[best].losses) - fmean(rows[0].losses)
    half = draw(st.floats(0.0, 0.5))
    significant = difference + half < 0
    return AnnealPart(
        rows, best if significant else 0, significant, 0, best, difference, difference - half, difference + half
    )


@SETTINGS
@given(part=annealings())
def test_the_annealing_taken_is_described_as_it_was_tested(part: AnnealPart, tmp_path: Path) -> None:
    text = page(tmp_path, anneal=part)
    others = sum(row.complete for row in part.branches) - 1
    means = [fmean(row.losses) if row.complete else math.inf for row in part.branches]
    taken = f"{100 * part.branches[part.chosen].share:.3g}%"
    assert "next best" not in text
    if others == 0:
        assert "Chosen without a test" in text and "significantly" not in text
    elif part.high < 0:
        # what the test compared: the lowest mean of the others, with the reference
        assert part.chosen == means.index(min(means[1:])) and means[part.chosen] < means[0]
        assert "significantly lower than that of the reference (10%" in text
        assert f"choice among {others} other{'s' * (others != 1)}" in text
    else:
        assert part.chosen == part.reference
        assert f"Of {others} other{'s' * (others != 1)}, none is significantly better" in text
    assert f"over the last {taken}" in text
    count = len(part.branches)
    assert f"Tested: {count} ending{'s' * (count != 1)} of training." in text


# --- the choice of the learning rate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "difference", "said"),
    [
        ("tuned", (-0.06, -0.08, -0.04), "significantly lower than at the rule"),
        ("tuned", None, "use the tuned rates without a test"),
        ("rule", (-0.01, -0.03, 0.01), "not significantly better"),
        ("rule", None, "use the rule; the caveats give the reason"),
    ],
)
def test_the_learning_rate_taken_is_described_as_it_was_tested(
    taken: str, difference: tuple[float, float, float] | None, said: str, tmp_path: Path
) -> None:
    line = LrLine(2, 1000, [0.5, 1, 2], [3.2, 3.1, 3.3])
    part = LrPart([line], [], taken=taken, depth=2, confirm={}, difference=difference)
    text = page(tmp_path, lr=part)
    assert said in text and ("significant" in text) is (difference is not None)


# --- the choice among mixtures -------------------------------------------------------------------------------------


@st.composite
def mixtures(draw: st.DrawFn) -> MixturePart:
    weights = {"a": 0.25, "b": 0.75}
    names = [f"candidate {i + 1}" for i in range(draw(st.integers(0, 3)))] + ["natural"]
    seeds = draw(st.integers(1, 3))
    rows = []
    for name in names:
        measured = draw(st.lists(losses, min_size=seeds, max_size=seeds)) if draw(st.booleans()) else []
        rows.append(CandidateRow(name, weights, 3.0, 2.9, 3.1, measured))
    complete = {row.name: fmean(row.measured) for row in rows if row.measured}
    others = {name: mean for name, mean in complete.items() if name != "natural"}
    if not others or "natural" not in complete:
        choice = MixtureChoice("natural", "natural", 0.0, 0.0, 0.0, False, None, 0)
    else:
        best = min(others, key=lambda name: others[name])
        d, half = others[best] - complete["natural"], draw(st.floats(0.0, 0.5))
        choice = MixtureChoice(
            best if d + half < 0 else "natural", "natural", d, d - half, d + half, d + half < 0, best, len(others)
        )
    return MixturePart(["a", "b"], [[0.5, 0.5]], [], rows, choice, weights, weights, weights)


@SETTINGS
@given(part=mixtures())
def test_the_mixture_taken_is_described_as_it_was_tested(part: MixturePart, tmp_path: Path) -> None:
    text = page(tmp_path, mixture=part)
    means = {row.name: fmean(row.measured) for row in part.candidates if row.measured}
    others = [name for name in means if name != "natural"]
    assert part.choice is not None
    if "natural" not in means or not others:
        assert "without a test" in text and "significantly" not in text
        return
    best = min(others, key=lambda name: means[name])
    assert f"“{part.choice.taken}”" in text
    if part.choice.high < 0:
        assert means[best] < means["natural"]
        assert f"“{best}” was chosen" in text and "significantly lower than that of “natural”" in text
        assert f"among {len(others)} other{'s' * (len(others) != 1)}" in text
    else:
        assert "“natural” was kept" in text and f"lowest mean: “{best}”" in text
        assert f"of {len(others)} mixture{'s' * (len(others) != 1)} trained again" in text
    assert "1 small model, each" in text and "of 2 domains" in text


# --- the arms and what their difference is worth -------------------------------------------------------------------


@SETTINGS
@given(
    mean=st.floats(-0.5, 0.5),
    half=st.floats(0.0, 0.5),
    seeds=st.integers(2, 5),
    worth=st.one_of(st.none(), st.tuples(st.floats(0.2, 20.0), st.floats(1.0, 3.0))),
)
def test_a_difference_is_told_with_its_sign_its_seeds_and_its_worth(
    mean: float, half: float, seeds: int, worth: tuple[float, float] | None, tmp_path: Path
) -> None:
    low, high = mean - half, mean + half
    row = DifferenceRow("found", "natural", seeds, mean, low, high)
    multiplier = Multiplier("natural", None, None, None)
    if worth is not None:
        multiplier = Multiplier("natural", worth[0], worth[0] / worth[1], worth[0] * worth[1])
    arms = [ArmRow(name, [3.0] * seeds, 3.0, 2.9, 3.1) for name in ("found", "natural")]
    text = page(tmp_path, arms=arms, differences=[row], multipliers=[multiplier])
    said = {
        "better": "the found mixture is significantly better than the natural one" in text,
        "worse": "the found mixture is significantly worse than the natural one" in text,
        "undecided": "the found and the natural mixture do not differ significantly" in text,
    }
    assert said == {"better": high < 0, "worse": low > 0, "undecided": low <= 0 <= high}
    assert f"paired over {seeds} seeds" in text and f"Finished seeds per mixture: {seeds}." in text
    ratios = [f"{math.exp(v):.3g}" for v in (mean, low, high)]
    assert f"Perplexity on the target: {ratios[0]} times that of the natural mixture [{ratios[1]}, {ratios[2]}]" in text
    if worth is None:
        assert "The ladder cannot tell" in text and "compute multiplier" not in text
    else:
        share = [f"{100 / v:.1f}%" for v in (multiplier.value, multiplier.high, multiplier.low)]  # type: ignore[operator]
        assert f"with {share[0]} of the compute [{share[1]}, {share[2]}]" in text


def test_a_multiplier_whose_end_is_beyond_the_ladder_has_an_open_interval(tmp_path: Path) -> None:
    row = DifferenceRow("found", "natural", 2, -0.01, -0.05, 0.03)
    arms = [ArmRow(name, [3.0, 3.0], 3.0, 2.9, 3.1) for name in ("found", "natural")]
    text = page(tmp_path, arms=arms, differences=[row], multipliers=[Multiplier("natural", 1.25, 0.0, math.inf)])
    assert "with 80.0% of the compute [0.0%, ∞]" in text


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_tests_nothing(seeds: int, tmp_path: Path) -> None:
    text = page(tmp_path, differences=[DifferenceRow("found", "natural", seeds)])
    assert "cannot be tested: fewer than two seeds finished on both" in text
    assert not any(word in text for word in ("significantly", "Perplexity"))


def test_arms_with_other_numbers_of_seeds_are_told_apart(tmp_path: Path) -> None:
    arms = [ArmRow("found", [3.0, 3.1, 3.2], 3.1, 3.0, 3.2), ArmRow("natural", [3.3], 3.3, None, None)]
    assert "Finished seeds per mixture: found 3, natural 1." in page(tmp_path, arms=arms)


@SETTINGS
@given(
    studies=st.floats(1e9, 1e20),
    run=st.floats(1e9, 1e20),
    multiplier=st.floats(1.01, 50.0),
    spread=st.floats(1.0, 5.0),
)
def test_where_the_studies_pay(studies: float, run: float, multiplier: float, spread: float, tmp_path: Path) -> None:
    ends = [multiplier, multiplier * spread, multiplier / spread]
    at, low, high = (studies / (m - 1) if m > 1 else None for m in ends)
    text = page(
        tmp_path,
        cost=[],
        break_even=BreakEven("natural", studies, run, multiplier, at, low, high),
        samples=[],
        failures=[],
    )
    assert at is not None
    assert ("at no size" in page_cost(tmp_path, studies, run, multiplier, at, low, high)) is (high is None)
    paid = page_cost(tmp_path, studies, run, multiplier, at, low, high)
    # a run of that size saves multiplier - 1 times its compute
    assert ("the studies have paid off" in paid) is ((multiplier - 1) * run >= studies * (1 - 1e-12))
    assert ("cost more than they save" in paid) is not ("the studies have paid off" in paid)
    assert "which was not tested here" in paid
    assert text  # without costs there is no section, and no sentence either
    assert "pay off for" not in text


def page_cost(tmp_path: Path, *numbers: float | None) -> str:
    from armillary.report import CostRow

    return page(tmp_path, cost=[CostRow("mixture", 1, 1.0, 1.0, 1.0)], break_even=BreakEven("natural", *numbers))  # type: ignore[arg-type]


def test_no_saving_is_told_as_none(tmp_path: Path) -> None:
    none = page_cost(tmp_path, 1e12, 1e11, 1.1, None, None, None)
    assert "do not pay off at any size" in none and "pay off for" not in none
    unknown = page_cost(tmp_path, 1e12, 1e11, None, None, None, None)
    assert "is unknown" in unknown and "pay off for" not in unknown


# --- prediction and verdict ----------------------------------------------------------------------------------------


@st.composite
def predictions(draw: st.DrawFn) -> tuple[PredictionPart, str]:
    state = draw(st.sampled_from(["before", "judged", "diverged", "pending"]))

    def row(name: str) -> PredictionRow:
        mean = draw(losses)
        measured = mean + draw(st.floats(-0.2, 0.2)) if state == "judged" else None
        inside = None if state in ("before", "pending") else measured is not None and abs(measured - mean) <= 0.1
        return PredictionRow(name, mean, mean - 0.1, mean + 0.1, measured, inside)

    rows = [row(f"domain {i}") for i in range(draw(st.integers(1, 4)))]
    part = PredictionPart(
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:30Z" if state != "before" else None,
        rows,
        row("target"),
        begun=state != "before",
        pending="its worker died" if state == "pending" else None,
    )
    return part, state


@SETTINGS
@given(case=predictions())
def test_a_verdict_counts_domains_and_the_target(case: tuple[PredictionPart, str], tmp_path: Path) -> None:
    part, state = case
    text = page(tmp_path, prediction=part, workspace="demo")
    assert part.target is not None
    every = [*part.rows, part.target]
    hits = re.findall(r"(\d+) of (\d+) predictions? inside their 90% intervals: (\d+) (domains?) and the target", text)
    if state in ("judged", "diverged"):
        inside = sum(row.measured is not None and row.low <= row.measured <= row.high for row in every)
        assert hits == [(str(inside), str(len(every)), str(len(part.rows)), "domain" + "s" * (len(part.rows) != 1))]
        assert text.count("✓ inside") == inside + (1 if part.target.inside else 0)  # the target stands on top as well
    else:
        assert not hits and "✓ inside" not in text and "✗" not in text
    assert ("outside: the run diverged" in text) is (state == "diverged")
    assert ("the verdict is pending. Cause: its worker died" in text) is (state == "pending")
    assert ("armillary train demo" in text) is (state == "pending")
    assert ("the target run has not begun" in text) is (state == "before")


def test_a_start_that_was_not_recorded_is_not_called_none(tmp_path: Path) -> None:
    text = page(tmp_path, prediction=PredictionPart("2026-01-01T00:00:00Z", None, [], begun=True))
    assert "the start of the target run was not recorded" in text and "has not begun" not in text


@pytest.mark.parametrize("problem", [None, "entry 3 was changed"])
def test_the_chain_is_told_intact_only_where_it_is(problem: str | None, tmp_path: Path) -> None:
    chain = Chain(7, "abcdef", problem, prediction=3, verdict=7)
    text = page(tmp_path, prediction=PredictionPart("2026-01-01T00:00:00Z", None, [], chain=chain))
    assert ("The store holds 7 records" in text and "None has been changed" in text) is (problem is None)
    assert ("The chain of records is broken" in text and "entry 3 was changed" in text) is (problem is not None)
    assert ("Prediction: number 3; verdict: number 7." in text) is (problem is None)


# --- the ladder ----------------------------------------------------------------------------------------------------


@SETTINGS
@given(rungs=st.lists(st.tuples(losses, losses, st.floats(0.01, 0.3)), min_size=1, max_size=9))
def test_the_ladder_draws_each_run_and_the_law_at_its_own_size(
    rungs: list[tuple[float, float, float]], tmp_path: Path
) -> None:
    points = [
        LadderPoint(
            "base", 1 + i % 3, 1000 * (1 + i % 3), 100 * (1 + i), 1e9 * (1 + i), {}, seen, mean, mean - w, mean + w
        )
        for i, (seen, mean, w) in enumerate(rungs)
    ]
    axes = ladder_figure(LadderPart(points, []), Words("en")).axes[0]
    drawn = [(tuple(line.get_xdata()), tuple(line.get_ydata()), line.get_marker()) for line in axes.lines]
    for p in points:
        assert ((p.flops, p.flops), (p.low, p.high), "None") in drawn  # the interval at this run's own compute
        assert ((p.flops,), (p.predicted,), "_") in drawn
        assert any(p.flops in x and y[x.index(p.flops)] == p.target for x, y, mark in drawn if mark in "os^")
    assert not [c for c in axes.collections if not isinstance(c, LineCollection)]  # no band along a path
    inside = sum(p.low <= p.target <= p.high for p in points)  # type: ignore[operator]
    text = page(tmp_path, ladder=LadderPart(points, []))
    assert f"{inside} of {len(points)} runs lie inside their interval" in text
    sizes = len({p.parameters for p in points})
    assert f"{len(points)} run{'s' * (len(points) != 1)} of {sizes} size{'s' * (sizes != 1)}." in text


# --- corpus, recipe, failures, notes -------------------------------------------------------------------------------


@SETTINGS
@given(
    counts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
)
def test_counts_of_the_corpus_agree_in_number(counts: list[tuple[int, int, bool]], tmp_path: Path) -> None:
    rows = [
        DomainRow(f"d{i}", "s", "", train, n if train else 0, 1, n, k, 1.0) for i, (n, k, train) in enumerate(counts)
    ]
    text = page(tmp_path, corpus=rows)
    documents, duplicates = sum(n for n, _, _ in counts), sum(k for _, k, _ in counts)
    assert f"{len(rows)} domain{'s' * (len(rows) != 1)}, {sum(t for *_, t in counts)} of them for training" in text
    assert f"The corpus has {documents} document{'s' * (documents != 1)};" in text
    assert f"{duplicates} exact {'duplicate was' if duplicates == 1 else 'duplicates were'} dropped" in text
    assert text.count("not stated") == len(rows)


def test_the_headline_shows_the_mixture_of_each_phase(tmp_path: Path) -> None:
    recipe = Recipe([Phase(1, 60, {"a": 0.7, "b": 0.3}), Phase(61, 100, {"a": 0.9, "b": 0.1})], {"a": 1.5}, True)
    mixture = MixturePart(["a", "b"], [], [], [], None, {"a": 0.5, "b": 0.5}, {}, {"a": 0.7, "b": 0.3})
    text = page(tmp_path, recipe=recipe, mixture=mixture)
    assert "steps 1 to 60" in text and "steps 61 to 100" in text
    assert "70.0%90.0%50.0%" in text.replace(" ", "") and "30.0%10.0%50.0%" in text.replace(" ", "")


def test_a_power_is_explained(tmp_path: Path) -> None:
    part = AnnealPart([AnnealRow(0.2, "linear", [3.0], power=1.5)], chosen=0, significant=False, reference=0)
    text = page(tmp_path, anneal=part)
    assert "found^" not in text and "mixture found, power 1.5" in text
    assert "Power 1.5: each weight of the mixture found is raised to this power" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_of_note_is_a_sentence(language: str, tmp_path: Path) -> None:
    kinds = [key.removeprefix("note_") for key in STRINGS if key.startswith("note_")]
    for kind in kinds:
        text = page(tmp_path, language, notes=[Note(kind, "news", "the detail", 61, "high")])
        assert "{" not in text
        assert "the detail" in text or kind in ("failures", "adjusted"), kind


def test_many_problems_of_a_domain_are_one_line(tmp_path: Path) -> None:
    text = page(tmp_path, notes=[Note("domain", "code", "a.py: the file is empty", 60)])
    assert "code: 60 problems while reading the text, first: a.py: the file is empty" in text


def test_failed_runs_stand_in_a_table_with_their_causes(tmp_path: Path) -> None:
    rows = [
        FailureRow("mixture", "aa11", "failed", "disk full"),
        FailureRow("target", "bb22", "diverged", "not finite"),
    ]
    text = page(tmp_path, failures=rows)
    assert "2 runs of these studies without a result" in text
    assert all(word in text for row in rows for word in (row.run, row.cause, row.status))
    assert "1 run of these studies" in page(tmp_path, failures=rows[:1])
