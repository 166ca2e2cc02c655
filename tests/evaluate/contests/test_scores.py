"""The official scores: known values, and what must hold for any items and answers."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.evaluate.contests import ALL, CONTESTS, Contest, Item
from armillary.evaluate.contests.ched import LABELS, Ched, paired
from armillary.evaluate.contests.nlpcc2024_5 import CLASSES
from armillary.evaluate.contests.space2024 import TASKS
from armillary.evaluate.intervals import mean_interval

Answers = dict[str, Any]
few = settings(max_examples=15)

letters = st.sets(st.sampled_from("ABCD"), min_size=1).map(lambda found: tuple(sorted(found)))
events = st.lists(st.tuples(st.text("攻城伐遣使", min_size=1, max_size=3), st.sampled_from(LABELS[30:36])), max_size=4)
classes = st.sampled_from([(coarse, fine) for fine, coarse in CLASSES.items()])
ANSWERS = {"space2024": letters, "ched": events.map(tuple), "nlpcc2024-5": classes}


@st.composite
def examined(draw: Any) -> tuple[Contest, list[Item], Answers]:
    """A contest, some items, and an answer or none to each."""
    contest = CONTESTS[draw(st.sampled_from(sorted(CONTESTS)))]
    answer = ANSWERS[contest.name]
    subset = st.sampled_from(sorted(TASKS.values()) if contest.name == "space2024" else [""])
    items = [
        Item(str(place), draw(subset), draw(st.sampled_from("pq")), "攻城", f"{place}", draw(answer))
        for place in range(draw(st.integers(1, 6)))
    ]
    return contest, items, {item.id: draw(st.none() | answer) for item in items}


def main_value(contest: Contest, items: list[Item], answers: Answers) -> float:
    return next(score.value for score in contest.examine(items, answers) if score.metric == contest.main_metric)


@few
@given(examined())
def test_the_true_answers_score_1_in_every_metric(case: tuple[Contest, list[Item], Answers]) -> None:
    contest, items, _ = case
    scores = contest.examine(items, {item.id: item.gold for item in items})
    for score in scores:
        assert (score.value, score.high) == pytest.approx((1.0, 1.0))
        assert score.low < 1  # some right answers say little of the next one


@few
@given(examined(), st.randoms(use_true_random=False))
def test_the_order_of_items_and_of_parts_of_an_answer_does_not_matter(
    case: tuple[Contest, list[Item], Answers], random: Any
) -> None:
    contest, items, answers = case
    before = {(score.metric, score.subset): score.value for score in contest.examine(items, answers)}
    turned = {
        name: answer if answer is None or contest.name == "nlpcc2024-5" else tuple(reversed(answer))
        for name, answer in answers.items()
    }
    random.shuffle(items)
    after = {(score.metric, score.subset): score.value for score in contest.examine(items, turned)}
    assert after == pytest.approx(before)


@few
@given(examined())
def test_a_repaired_answer_never_lowers_a_score(case: tuple[Contest, list[Item], Answers]) -> None:
    contest, items, answers = case
    last = {(score.metric, score.subset): score.value for score in contest.examine(items, answers)}
    for item in items:
        answers[item.id] = item.gold
        now = {(score.metric, score.subset): score.value for score in contest.examine(items, answers)}
        assert all(now[key] >= last[key] - 1e-9 for key in last)
        last = now


@settings(max_examples=40)
@given(events.filter(bool), events.filter(bool), st.data())
def test_a_repaired_event_never_lowers_the_score(true: Any, predicted: Any, data: Any) -> None:
    """Adding an event that is missed, leaving one out that is too many, giving one its true type."""
    item = Item("1", "", "1", "", "", tuple(true))
    before = Ched().value(item, tuple(predicted))
    pairs = paired(tuple(predicted), item.gold)
    better = list(predicted)
    kind = data.draw(st.sampled_from(["label", "event", "add", "drop"]))
    if kind in ("label", "event"):
        mine, other = data.draw(st.sampled_from(pairs))
        better[mine] = true[other] if kind == "event" else (better[mine][0], true[other][1])
    elif kind == "add" and len(true) > len(predicted):
        better.append(next(true[i] for i in range(len(true)) if i not in {other for _, other in pairs}))
    elif kind == "drop" and len(predicted) > len(true):
        del better[next(i for i in range(len(predicted)) if i not in {mine for mine, _ in pairs})]
    assert Ched().value(item, tuple(better)) >= before - 1e-5


@few
@given(examined())
def test_every_value_lies_in_its_interval_and_between_0_and_1(case: tuple[Contest, list[Item], Answers]) -> None:
    contest, items, answers = case
    for score in contest.examine(items, answers):
        assert 0 <= score.low <= score.high <= 1 + 1e-9
        assert 0 <= score.value <= 1 + 1e-9


@few
@given(examined())
def test_what_is_written_as_predictions_reads_back(case: tuple[Contest, list[Item], Answers]) -> None:
    contest, items, answers = case
    if contest.name == "nlpcc2024-5":
        items = [Item(f"e:{item.id}", "", "e", item.text, item.question, item.gold) for item in items]
        answers = {f"e:{name}": answer for name, answer in answers.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in contest.prediction_rows(items, answers)))
        back = contest.predictions(path, [item.id for item in items])
    assert {name: answer or None for name, answer in back.items()} == {
        name: answer for name, answer in answers.items() if contest.name != "nlpcc2024-5" or answer is not None
    } | {name: None for name, answer in answers.items() if not answer and contest.name != "nlpcc2024-5"}


def test_the_composite_of_ched_by_hand() -> None:
    """One sentence: an equal trigger of the wrong fine type, and a trigger without a character, of the right type."""
    item = Item("1", "", "1", "遣使攻城", "", (("遣", "交流-个人交流-派遣"), ("攻城", "军事-作战-攻击-征伐")))
    answer = (("遣", "交流-个人交流-进言"), ("攻", "军事-作战-攻击-征伐"))
    scores = {score.metric: score.value for score in Ched().examine([item], {"1": answer})}
    half_bleu = 0.36787944117144233  # exp(1 - 2 / 1)
    assert scores["bleu"] == pytest.approx((1 + half_bleu) / 2)
    assert scores["rouge"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["exact"] == pytest.approx(1 / 2)
    assert (scores["coarse_f1"], scores["fine_f1"]) == (1.0, 0.5)
    trigger = (scores["bleu"] + scores["rouge"] + scores["exact"]) / 3
    assert scores["score"] == pytest.approx(0.4 * trigger + 0.6 * 0.75)


def test_an_interval_that_draws_passages_is_wider_than_one_that_draws_items() -> None:
    contest = CONTESTS["space2024"]
    alone = [Item(str(i), "roles", str(i), "", str(i), ("A",)) for i in range(100)]
    shared = [Item(str(i), "roles", str(i // 10), "", str(i), ("A",)) for i in range(100)]
    answers = {str(i): ("A",) if i < 50 else ("B",) for i in range(100)}
    widths = [
        score.high - score.low
        for items in (alone, shared)
        for score in contest.examine(items, answers)
        if score.subset == ALL
    ]
    assert widths[1] > 2 * widths[0]


def test_an_item_without_an_answer_counts_as_wrong() -> None:
    for contest in CONTESTS.values():
        golds = {"space2024": ("A",), "ched": (("攻", LABELS[34]),), "nlpcc2024-5": ("evidence", "fact")}
        gold = golds[contest.name]
        items = [Item(name, "roles", name, "攻", name, gold) for name in "12"]
        assert main_value(contest, items, {"1": gold}) < 0.7
        assert main_value(contest, items, {}) == 0


@pytest.mark.parametrize("name", [pytest.param("ched", marks=pytest.mark.slow), "nlpcc2024-5", "space2024"])
def test_the_published_data_scores_1_against_itself(name: str) -> None:
    contest = CONTESTS[name]
    folder = contest.own_data
    if folder is None:
        if "ARMILLARY_EVALUATION" not in os.environ:
            pytest.skip("ARMILLARY_EVALUATION names no folder of examination data")
        folder = Path(os.environ["ARMILLARY_EVALUATION"]) / name
    counts = {"space2024": (4483, 1210), "ched": (5685, 1218), "nlpcc2024-5": (39, 25)}[name]
    for file, count in zip((contest.train_file, contest.test_file), counts, strict=True):
        items = contest.items(folder / file)
        assert len(items) == count
        answers = contest.predictions(folder / file, [item.id for item in items])
        assert main_value(contest, items, dict(answers)) == 1


def test_the_interval_of_an_accuracy_is_that_of_independent_items() -> None:
    items = [Item(str(i), "roles", str(i), "", str(i), ("A",)) for i in range(60)]
    answers = {str(i): ("A",) if i < 42 else ("B",) for i in range(60)}
    for score in CONTESTS["space2024"].examine(items, answers):
        expected = mean_interval([1.0] * 42 + [0.0] * 18)
        assert (score.value, score.low, score.high) == pytest.approx(
            (expected.value, expected.low, expected.high), abs=0.012
        )


def test_a_gain_is_paired_by_item() -> None:
    """Two systems that differ on few items: the gain is known far better than both scores are."""
    contest = CONTESTS["space2024"]
    items = [Item(str(i), "roles", str(i), "", str(i), ("A",)) for i in range(200)]
    base = {str(i): ("A",) if i % 2 else ("B",) for i in range(200)}
    better = {**base, **{str(i): ("A",) for i in range(0, 24, 2)}}
    gain = contest.gain(items, better, base)
    assert gain.value == pytest.approx(0.06)
    assert 0 < gain.low < 0.06 < gain.high < 0.12
    assert contest.gain(items, base, base).value == 0
