"""Evaluation sets of usual forms are read for what they ask; training files and lists of labels are left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from armillary.corpus import KnownItem
from armillary.evaluate.tasks import read_evaluation, split_of
from armillary.recipe import UsageError


def written(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def items(path: Path) -> list[KnownItem]:
    return [item for one in read_evaluation(path, lambda text: None) for item in one.items]


@pytest.mark.parametrize(
    ("row", "question", "choices", "solution"),
    [
        ({"question": "q", "answer": "a"}, "q", (), "a"),
        ({"problem": "p", "solution": "s", "answer": "7", "difficulty": 2.0}, "p", (), "s\n7"),
        ({"task_id": "x", "prompt": "def f():", "canonical_solution": "code", "test": "t"}, "def f():", (), ""),
        ({"text": "t", "question": "q", "option": {"A": "1", "B": "2"}, "answer": ["A"]}, "t\nq", ("1", "2"), ""),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}, "q", ("x", "y"), ""),
        ({"Question": "q", "A": 1, "B": 2, "C": 3, "D": 4, "Answer": "A"}, "q", ("1", "2", "3", "4"), "A"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "r"}]}, "u", (), "r"),
        ({"instruction": "i", "input": "x", "output": "o"}, "i\nx", (), "o"),
    ],
)
def test_rows_of_usual_forms(
    tmp_path: Path, row: dict[str, Any], question: str, choices: tuple[str, ...], solution: str
) -> None:
    path = written(tmp_path / "set.jsonl", row)
    assert items(path) == [KnownItem("set.jsonl:1", question, choices, solution)]


def test_a_folder_is_read_with_all_below_it_but_training_files_and_labels(tmp_path: Path) -> None:
    root = tmp_path / "data"
    written(root / "a/train.jsonl", {"question": "t"})
    written(root / "a/train_2.jsonl", {"question": "t"})
    written(root / "a/test.jsonl", {"question": "q"})
    written(root / "a/label.jsonl", {"label": "l"})
    (root / "b.json").write_text(json.dumps({"canary": "c", "examples": [{"input": "i", "target": "t"}]}))
    (root / "c.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "p"}\r\n\r\n'))
    (root / "test").mkdir()
    (root / "test/law.csv").write_text("Question,A,B,C,D,Answer\n第一题,a,b,c,d,B\n", encoding="utf-8")
    (root / "notes.md").write_text("no data")
    notes: list[str] = []
    found = list(read_evaluation(root, notes.append))
    assert [(one.items[0].name, one.split) for one in found] == [
        ("data/a/test.jsonl:1", "test"),
        ("data/b.json:1", ""),
        ("data/c.jsonl.gz:1", ""),
        ("data/test/law.csv:1", "test"),
    ]
    assert sum("training data" in note for note in notes) == 2
    assert sum("label.jsonl" in note for note in notes) == 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"question": "q"}\n{"question": ', "a.jsonl:2: not JSON"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"label": 1}\n', "none of its 1 rows has a question"),
        ("a.jsonl", b"", "none of its 0 rows has a question"),
        ("a.json", b"{", "a.json:1: not JSON"),
        ("a.csv", b"question,A,B,C,D,answer\nq,1,2,3,4,E\n", "answer is 'E'"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        items(tmp_path / name)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        items(tmp_path / "missing")
    written(tmp_path / "set/train.jsonl", {"question": "q"})
    with pytest.raises(UsageError, match="has no evaluation items"):
        items(tmp_path / "set")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        *(("gsm8k/train.jsonl", "train"), ("mmlu/dev/law_dev.csv", "dev"), ("cmmlu/test/law.csv", "test")),
        *(("ched/valid.jsonl", "valid"), ("a/validation.json", "valid"), ("a/trains.jsonl", ""), ("b/x.jsonl.gz", "")),
    ],
)
def test_the_split_is_in_the_name(path: str, split: str) -> None:
    assert split_of(Path(path)) == split
