"""Small files in the layouts of the tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of GSM8K, C-Eval, CMMLU and BBH with a few questions each."""
    place = tmp_path / "data"
    examples = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(1, 9)]
    write_lines(place / "gsm8k" / "train.jsonl", examples)
    write_lines(place / "gsm8k" / "test.jsonl", [{**e, "question": e["question"] + " 1?"} for e in examples[:6]])
    header = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    for subject in ("accountant", "law"):
        for split in ("dev", "val"):
            rows = [[n, f"{subject} 的问题 {n}？", "甲", "乙", "丙", "丁", "ABCD"[n % 4], ""] for n in range(5)]
            write_csv(place / "ceval" / split / f"{subject}_{split}.csv", header, rows)
    for split in ("dev", "test"):
        rows = [[n, f"第{n}题", "1", "2", "3", "4", "ABCD"[n % 4]] for n in range(6)]
        write_csv(place / "cmmlu" / split / "anatomy.csv", ["", "Question", "A", "B", "C", "D", "Answer"], rows)
    bbh = [{"input": f"not {a} is", "target": str(not a)} for a in (True, False, True)]
    (place / "bbh").mkdir()
    (place / "bbh" / "boolean_expressions.json").write_text(json.dumps({"canary": "", "examples": bbh}))
    return place


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
