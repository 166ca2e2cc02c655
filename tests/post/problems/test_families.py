"""Families: the reader computes the same answer from the text alone, and does not accept what it cannot understand."""

from __future__ import annotations

import random

import pytest

from armillary.post.problems import LANGUAGES, LEVELS, Family, Language, Problem, family_names, family_of, is_held_out
from armillary.post.problems.wording import language_of
from armillary.post.verify import verify
from armillary.recipe import UsageError


def drawn(name: str, language: Language, level: int, count: int) -> list[tuple[Family, Problem]]:
    family = family_of(name)
    return [
        (family, family.make(random.Random(f"{name} {language} {level} {number}"), level, language))
        for number in range(count)
    ]


def test_there_are_enough_families() -> None:
    assert len(family_names()) >= 12
    assert {family_of(name).domain for name in family_names()} == {"math", "logic", "code"}
    with pytest.raises(UsageError, match="no family 'tallly'; nearest: 'tally'"):
        family_of("tallly")


@pytest.mark.parametrize("name", family_names())
def test_the_reader_finds_the_answer_in_the_text_alone(name: str) -> None:
    for language in LANGUAGES:
        for level in range(1, LEVELS + 1):
            texts = set()
            for family, problem in drawn(name, language, level, 30):
                item = family.item(problem, level, language)
                assert family.same(problem.text, item), problem.text
                texts.add(problem.text)
                # The worked solution passes the item's own check; code is checked below.
                assert family.domain == "code" or verify(item, item.reply).outcome == "right", item.reply
            assert len(texts) >= 20, "too little variety"
            assert {language_of(text) for text in texts} == {language}


@pytest.mark.parametrize("name", ["textcode", "listcode"])
def test_programs_pass_their_tests(name: str) -> None:
    for level in range(1, LEVELS + 1):
        for family, problem in drawn(name, "en", level, 1):
            item = family.item(problem, level, "en")
            assert verify(item, item.reply).outcome == "right"
            assert verify(item, f"def {item.check['entry']}(x):\n    return None").outcome == "wrong"  # type: ignore[index]


# What a teacher makes of questions, with the answer; None where a reader must not guess.
REWRITTEN = [
    ("tally", "Ann had 5 apples. Then she bought 3 more and lost 2. How many apples does Ann have left?", "6"),
    ("tally", "Ann has 5 apples. Her friend gives her 3. How many apples does Ann have now?", None),
    ("tally", "Ann has 5 apples. She buys twice as many. How many apples does she have now?", None),
    ("tally", "Ann has 5 apples. Ben has 3 more than Ann. How many apples does Ben have?", None),
    ("tally", "小明原来有5个苹果，又买了3个，然后吃掉2个。小明现在有几个苹果？", "6"),
    ("tally", "小明有5个苹果，小红的苹果比他多3个。小红有几个苹果？", None),
    ("purchase", "A pen is priced at 3 dollars. Ann buys 4 pens. How much does she pay?", "12"),
    ("purchase", "A pen costs 3 dollars, with 10% off. Ann buys 4 pens. How much does she pay?", None),
    ("purchase", "What is the total cost of 9 notebooks, if each costs 7 dollars?", "63"),
    (
        "purchase",
        "Ann paid for 3 erasers with 130 dollars, and each eraser costs 37 dollars. What is her change?",
        "19",
    ),
    ("purchase", "Ann pays 130 dollars for 3 erasers. A pen costs 37 dollars. What is her change?", None),
    ("conversion", "Please tell me how many meters there are in 3.5 kilometers.", "3500 meters"),
    ("conversion", "3公里是多少米？", "3000米"),
    ("conversion", "How many meters are 3 kilometers and 20 meters?", None),
    ("remainder", "If 37 candies are divided evenly among 5 kids, how many candies will be left?", "2"),
    ("remainder", "If 5 kids share 37 candies evenly, how many are left?", None),
    ("calendar", "Suppose it is Monday today. Which weekday will it be 10 days from today?", "Thursday"),
    ("calendar", "Today is Monday. What day was it 10 days ago, and what day is tomorrow?", None),
    ("calendar", "Which day of the week will come 4 days from Wednesday?", "Sunday"),
    ("calendar", "今天是周一，10天以后是星期几？", "星期四"),
    ("clock", "The movie starts at 9:40 and runs for 85 minutes. When does it finish?", "11:05"),
    ("clock", "The movie starts at 9:40 pm and runs for 85 minutes. When does it finish?", None),
    ("linear", "Determine the value of x for which 3x + 5 = 20.", "5"),
    ("linear", "Determine x if 3x + 5 = 20 and y = 2.", None),
    ("sequence", "Which number follows in 2, 5, 8, 11, 14?", "17"),
    ("sequence", "Which number follows in 2, 5, 9, 11, 14?", None),
    ("ordering", "Ben is shorter than Ann, and Ben is taller than Leo. Who is the tallest?", "Ann"),
    ("ordering", "Ben is shorter than Ann. Leo is shorter than Ann. Who is the shortest?", None),
    ("ordering", "Ben is not shorter than Ann, and Ann is taller than Leo. Who is the tallest?", None),
    ("sets", "If A = {1, 2, 3} and B = {2, 3, 4}, what is the intersection of A and B?", "{2, 3}"),
    ("sets", "If A = {1, 2} and B = {2, 3}, what is the symmetric difference of A and B?", None),
    ("bases", "Please convert 10 from decimal to binary.", "1010"),
    ("bases", "What does the binary number 1010 equal in decimal?", "10"),
    ("expression", "How much is (2 + 3) × 4 - 1?", "19"),
    ("expression", "How much is 2 + 3, and then 4 - 1?", None),
    ("discount", "A coat is sold for 80 dollars. After a discount of 25%, what is the new price?", "60"),
    ("discount", "A coat costs 80 dollars after 25% off. What was the price before?", None),
    ("discount", "现价是1800元的椅子的降价是20%。现价是多少元？", None),
    ("discount", "A coat is now 80 dollars, with a discount of 25%. What is the new price?", None),
    ("average", "Work out the mean of 3, 5, and 10.", "6"),
    ("average", "Work out the mean and the median of 3, 5, and 10.", None),
    ("travel", "How far does a car get in 3 hours at 60 km/h?", "180"),
    ("travel", "A car goes at 60 km/h for 3 hours, with a rest of 10 minutes. How far does it go?", None),
    ("largest", "Which is the greatest? A. 0.5 B. 2/3 C. 60% D. 0.66", "B"),
    ("largest", "Which is the second largest? A. 0.5 B. 2/3 C. 60% D. 0.66", None),
    ("backwards", "Please reverse the order of the letters k, t, m.", "m, t, k"),
    ("backwards", "请把字母 k、t、m、b 倒着写出来。", "b, m, t, k"),
    ("backwards", "Write the letters k, t, m in alphabetical order, then backwards.", None),
    ("backwards", "Write k, t, m and then p, q, r backwards.", None),
    ("backwards", "Write all letters but the first of k, t, m backwards.", None),
    ("sorting", "Arrange 7, 12, 5 in increasing order.", "5, 7, 12"),
    ("sorting", "请由大到小写出 7、12、5、30。", "30, 12, 7, 5"),
    ("sorting", "Sort 7, 12, 5 from the smallest to the largest by absolute value.", None),
    ("sorting", "Sort the 3 numbers 7, 12, 5 in ascending order.", None),
    ("sorting", "Sort 7, 12, 5, 7 in ascending order.", None),
    ("successor", "Please tell me which number follows 1999.", "2000"),
    ("successor", "比99大1的数是几？", "100"),
    ("successor", "Which number is one less than 100?", "99"),
    ("successor", "Which even number follows 1998?", None),
    ("successor", "Which number follows 12 and 13?", None),
    ("successor", "Which number follows 12.5?", None),
    ("truthtellers", 'We know that Ben is a knave. Ann says: "Ben is a knight." Is Ann a knight or a knave?', "knave"),
    ("truthtellers", 'Ann says: "Ben is a knight." Is Ann a knight or a knave?', None),
]


@pytest.mark.parametrize(("name", "text", "answer"), REWRITTEN)
def test_readers_understand_or_refuse_what_others_wrote(name: str, text: str, answer: str | None) -> None:
    assert family_of(name).read(text) == answer


def test_what_is_held_out_depends_on_the_parameters_alone() -> None:
    problems: dict[str, set[str]] = {"train": set(), "held out": set()}
    family = family_of("tally")
    for number in range(400):
        problem = family.make(random.Random(number), 1, "en")
        problems["held out" if is_held_out("tally", problem, 0.25) else "train"].add(str(problem.parameters))
    assert not problems["train"] & problems["held out"]
    assert 0.1 < len(problems["held out"]) / len(problems["train"]) < 0.5
