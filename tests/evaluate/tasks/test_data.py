"""Files in the usual layouts are read; what is wrong in them is named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from armillary.evaluate.tasks import ExamOptions, prepare
from armillary.evaluate.tasks.data import SOURCES
from armillary.recipe import ArmillaryError, UsageError

HEADER = "id,question,A,B,C,D,answer,explanation\n"
CEVAL = SOURCES["ceval/ceval-exam"]
MMLU = SOURCES["cais/mmlu"]
GSM8K = SOURCES["openai/gsm8k"]


def put(path: Path, text: str) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("place", ["val/law_val.csv", "val/law.csv", "law_val.csv", "ceval/val/law_val.csv"])
def test_each_layout_of_c_eval_is_found(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, "\ufeff" + HEADER + '0,"行\u2028一, ""二""",甲,乙,丙,丁,b,\n\n')
    folder = CEVAL.locate(tmp_path, "ceval")
    assert CEVAL.subsets(folder) == ["law"]
    (row,) = CEVAL.read(folder, "law")["val"]
    assert row == {"question": '行\u2028一, "二"', "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "B"}


def test_test_files_with_answers_stand_in_for_missing_val_files(tmp_path: Path) -> None:
    put(tmp_path / "test" / "law_test.csv", HEADER + "0,q,1,2,3,4,C,\n")
    assert CEVAL.read(tmp_path, "law")["val"][0]["answer"] == "C"


@pytest.mark.parametrize("text", ["q,1,2,3,4,C\n", "question,choice0,choice1,choice2,choice3,answer\nq,1,2,3,4,2\n"])
def test_mmlu_is_read_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    put(tmp_path / "test" / "law_test.csv", text)
    assert MMLU.read(tmp_path, "law")["test"] == [{"question": "q", "choices": ["1", "2", "3", "4"], "answer": 2}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,question,A,B,C,answer\n0,q,1,2,3,A\n", r"law_val\.csv:1: no column D \(found: id, question"),
        ("id,question,A,B,C,D\n0,q,1,2,3,4\n", r"no column answer.*use the _val files"),
        (HEADER, "has no questions"),
        ("", "has no questions"),
        (HEADER + "0,q,1,2,3,4,E,\n", r"law_val\.csv:2: answer is 'E'; write A, B, C or D"),
        (HEADER + "0,q,1,2,3,4,,\n", r":2: answer is ''"),
        (HEADER + "0,q,1,2,3,4,A,\n1,q,1\n", r":3: 3 fields, fewer than the columns"),
        (HEADER + "0, ,1,2,3,4,A,\n", r":2: question is empty"),
        (HEADER + '0,"q,1,2,3,4,A,\n', r"not CSV"),
    ],
)
def test_a_wrong_csv_is_named(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path / "law_val.csv", text)
    with pytest.raises(UsageError, match=words):
        CEVAL.read(tmp_path, "law")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "q", "answer": "1"}\n{"question": "q"}\n', r"test\.jsonl:2: no field answer \(found: question"),
        ('{"question": "q", "answer": "1"}\n\n{"ques', r"test\.jsonl:3: not JSON"),
        ("[1]", r"test\.jsonl: item 1: is int, not an object"),
        ("\n", "has no items"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_json_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path / "test.jsonl", text)
    with pytest.raises(UsageError, match=words):
        GSM8K.read(tmp_path, "")


def test_bytes_that_are_not_utf8_and_torn_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        GSM8K.read(tmp_path, "")
    archive = gzip.compress(json.dumps({"task_id": 1}).encode())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(archive[:-9])
    with pytest.raises(UsageError, match="cannot be read"):
        SOURCES["openai/openai_humaneval"].read(tmp_path, "")


@pytest.mark.parametrize(("text", "words"), [("{}", "needs examples"), ("[]", "needs examples"), ("{", "not JSON")])
def test_a_wrong_file_of_bbh_is_named(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path / "navigate.json", text)
    with pytest.raises(UsageError, match=words):
        SOURCES["SaylorTwift/bbh"].read(tmp_path, "navigate")


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "no tasks"),
        (["gsm8k", "gsm8k"], "given twice"),
        (["gsm8kk"], "did you mean 'gsm8k'"),
        (["cmlu"], "did you mean 'cmmlu'"),
        (["humaneval"], r"humaneval: no data in .*humaneval"),
        (["mmlu_plus"], "is unknown"),
        (["minerva_math_algebra"], "has no local layout"),
        (["cmmlu_college_law"], "none of its subsets has a file"),
    ],
)
def test_a_wrong_task_is_named(data: Path, tasks: list[str], words: str) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match=words):
        prepare(tasks, data, ExamOptions())


def test_missing_examples_are_named(data: Path) -> None:
    pytest.importorskip("lm_eval")
    (data / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(UsageError, match=r"gsm8k: 5 few-shot examples come from its train split.*--shots 0"):
        prepare(["gsm8k"], data, ExamOptions())
    with pytest.raises(UsageError, match="7 few-shot examples requested, but only 6 available"):
        prepare(["cmmlu"], data, ExamOptions(shots=7))
    with pytest.raises(UsageError, match="no such folder"):
        prepare(["gsm8k"], data / "nowhere", ExamOptions(shots=0))
    assert prepare(["gsm8k"], data, ExamOptions(shots=0)).objects["gsm8k"].config.num_fewshot == 0


def test_subsets_without_files_are_known_and_new_subjects_are_taken(data: Path) -> None:
    pytest.importorskip("lm_eval")
    put(data / "ceval" / "val" / "天文学_val.csv", HEADER + "0,q,1,2,3,4,C,\n")
    (named,) = prepare(["ceval"], data, ExamOptions(shots=0)).named
    assert {leaf.subset for leaf in named.leaves} == {"accountant", "law", "天文学"} and len(named.absent) == 50


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"shots": -1}, {"max_new_tokens": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="give"):
        ExamOptions(**wrong)


def test_ifeval_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *_: pytest.fail("a download was tried"))
    monkeypatch.setattr(nltk.data, "path", [])
    rows = [
        {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 2,
            "prompt": "Two sentences.",
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"relation": "at least", "num_sentences": 2}],
        },
    ]
    put(tmp_path / "input_data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(["ifeval"], tmp_path, ExamOptions(limit=1)).objects.keys() == {"ifeval"}
    with pytest.raises(ArmillaryError, match=r"ifeval: 1 items count sentences.*punkt_tab.*NLTK_DATA"):
        prepare(["ifeval"], tmp_path, ExamOptions())
    assert capsys.readouterr().out == ""
