"""Known items are found in texts by four passes, in any script, and foreign texts are not taken for them."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.corpus import KnownItem, KnownItems, masked_numbers, similarity
from armillary.corpus.overlap import RUN, TEMPLATE

ENGLISH = (
    "A bakery sells 24 loaves in the morning and three times as many in the afternoon, and each loaf costs $2.50. "
    "How much money does the bakery take in on that day, if 5 loaves are left over and given away?"
)
CHINESE = (
    "小明家有三个果园，第一个果园种了120棵苹果树，第二个果园比第一个"
    "多种四十五棵，第三个果园的树是前两个总和的一半，问一共有多少棵树？"
)
KNOWN = [KnownItem("english", ENGLISH), KnownItem("chinese", CHINESE), KnownItem("short", "What is 3 - 2?")]
WORDS = ["".join(parts) for parts in itertools.product("bdfgklmnprst", "aeiou", "lmnrst", "aeiou")]
CHARACTERS = [chr(0x4E00 + i) for i in range(3000)]


def found(text: str, known: list[KnownItem] = KNOWN) -> tuple[str, str] | None:
    (match,) = KnownItems(known).match([[text]])
    return None if match is None else (match.by, match.item)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH.upper().replace(" ", "\n "), ("exact", "english")),
        (f"Answer this: {ENGLISH} Think step by step.", ("ngram", "english")),
        (f"请回答：{CHINESE}谢谢", ("ngram", "chinese")),
        ("what is 3-2", ("exact", "short")),
        ("What is 3 + 2?", None),
        ("Tell me what is 3 - 2?", None),  # too short to be looked for inside other text
        (ENGLISH.replace("24", "37").replace("three", "five").replace("2.50", "1,250").replace("5", "11"), None),
        ("A bakery sells bread all day. How much does it take in?", None),
        ("", None),
        ("\ud800", None),
    ],
)
def test_what_is_found_and_by_which_pass(text: str, expected: tuple[str, str] | None) -> None:
    if "37" in text:  # the same problem with other numbers
        expected = ("masked", "english")
        text = text.replace("in the morning", "before ten").replace("on that day", "in all")
    assert found(text) == expected


def test_chinese_numerals_and_digits_are_the_same_masked() -> None:
    other = CHINESE.replace("三", "5").replace("120", "八十").replace("四十五", "33").replace("一半", "2倍")
    other = other.replace("第一个", "第1个").replace("第二个", "第2个")
    assert found(other) == ("masked", "chinese")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("It costs $1,250.50 for 3/4 of it", "it costs $ 0  for  0  of it"),
        ("twenty-five or one hundred and three", " 0  or  0 "),
        ("共有三百二十个、１２只", "共有 0 个、 0 只"),
        ("someone often", "someone often"),
    ],
)
def test_a_number_is_masked_as_one_sign(text: str, masked: str) -> None:
    assert masked_numbers(text) == masked


def test_a_rewording_is_a_near_duplicate() -> None:
    words = random.Random(1).choices(WORDS, k=60)
    known = [KnownItem("one", " ".join(words)), *KNOWN]
    reworded = [word if place % 10 else "another" for place, word in enumerate(words)]
    assert found(" ".join(reworded), known) == ("near", "one")
    assert found(" ".join(random.Random(2).choices(words, k=60)), known) is None


def test_choices_make_an_item_out_of_a_short_question() -> None:
    choices = ("granite rock", "a glass of warm milk", "polished marble", "a lump of basalt")
    known = [KnownItem("mc", "Which of the following is a liquid at room temperature?", choices)]
    question = known[0].question
    assert found(question, known) is None
    assert found(question + " Name one.", known) is None
    assert found("\n".join([question, *choices]), known) == ("exact", "mc")
    lettered = "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))])
    assert found(lettered, known) == ("exact", "mc")
    assert found(f"Choose one.\n{lettered}\nAnswer:", known) == ("ngram", "mc")


def test_a_solution_is_found_by_its_words_and_not_by_its_steps() -> None:
    step = "Dividing both sides of the equation by 3 we find that x is 7 and so the answer is 14"
    known = [KnownItem("one", ENGLISH, solution=step)]
    assert found(f"We solve it. {step}.", known) == ("ngram", "one")
    assert found(step.replace("3", "5").replace("7", "9").replace("14", "18"), known) is None


@settings(max_examples=30)
@given(st.sampled_from([(WORDS, " "), (CHARACTERS, "")]), st.integers(8, 40), st.integers(1, 50), st.integers(0, 9))
def test_an_item_inside_a_longer_text_is_found(
    script: tuple[list[str], str], length: int, more: int, seed: int
) -> None:
    alphabet, between = script
    draw = random.Random(seed)
    item = between.join(draw.choices(alphabet, k=length + 1))
    text = "\n".join([between.join(draw.choices(alphabet, k=more)), item, between.join(draw.choices(alphabet, k=more))])
    expected = ("ngram", "it") if length + 1 > RUN or between else None
    # Below 13 units an item is found as a whole; Chinese units reach into the next character.
    if expected:
        assert found(text, [KnownItem("it", item)]) == expected
    assert found(between.join(draw.choices(alphabet, k=60)), [KnownItem("it", item)]) is None


def test_the_words_of_a_form_name_no_item() -> None:
    form = "Answer the following question of the examination with one of the letters A, B, C or D only"
    draw = random.Random(0)
    known = [KnownItem(str(i), f"{form}: {' '.join(draw.choices(WORDS, k=30))}") for i in range(TEMPLATE + 1)]
    assert found(f"{form}: {' '.join(draw.choices(WORDS, k=30))}", known) is None
    assert found(known[3].question + " please", known) == ("ngram", "3")


def test_variants_of_one_problem_are_found_although_all_share_their_words() -> None:
    known = [KnownItem(str(i), ENGLISH.replace("24", str(100 + i))) for i in range(TEMPLATE + 5)]
    assert found(ENGLISH.replace("24", "77") + " Show your work.", known) == ("near", "0")


def test_documents_do_not_depend_on_their_batch() -> None:
    texts = [[ENGLISH], ["x", f"see: {CHINESE}"], ["no"], [], [ENGLISH.replace("24", "8")]]
    known = KnownItems(KNOWN)
    together = known.match(texts)
    assert together == [known.match([text])[0] for text in texts]
    assert [match and match.item for match in together] == ["english", "chinese", None, None, "english"]


def test_no_items_match_nothing() -> None:
    assert KnownItems([]).match([[ENGLISH]]) == [None]
    assert KnownItems([KnownItem("empty", "")]).match([[""], ["..."]]) == [None, None]


def test_similarity_of_texts() -> None:
    table = similarity([ENGLISH, ENGLISH + " ", ENGLISH.replace("bakery", "shop"), CHINESE, "7", "7.", "8", ""])
    assert table[0, 1] == table[4, 5] == 1
    assert 0.5 < table[0, 2] < 1
    assert table[0, 3] == table[4, 6] == table[4, 7] == 0
    assert (table == table.T).all()
