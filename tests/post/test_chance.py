"""The chance level: what the best answer that does not depend on the question is expected to get right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from armillary.post.chance import chance_level

Row = tuple[str, str, str]  # family, language, answer


def written(path: Path, rows: list[Row], check: dict[str, Any] | None = None) -> Path:
    lines = [
        {
            "messages": [{"role": "user", "content": f"{family} {number}?"}],
            "answer": answer,
            "family": family,
            "language": language,
            "check": check or {"kind": "text"},
        }
        for number, (family, language, answer) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("training", "held_out", "expected"),
    [
        # half of the training answers are "yes", whatever the few held-out ones happen to be
        ([("a", "en", word) for word in ("yes", "yes", "no", "maybe")], [("a", "en", "no")] * 2, 0.5),
        # each kind has its own best answer: a language is seen in the question
        ([("a", "en", "yes"), ("a", "zh", "是")], [("a", "en", "yes"), ("a", "zh", "是")], 1.0),
        # answers that are all different: nearly nothing
        ([("a", "en", str(number)) for number in range(100)], [("a", "en", "7")], 0.01),
        # the mean over the held-out questions
        (
            [("a", "en", "x"), *(("b", "en", str(n)) for n in range(4))],
            [("a", "en", "x")] * 3 + [("b", "en", "1")],
            0.8125,
        ),
        # a kind without training questions
        ([("a", "en", "x")], [("b", "en", "x")], 0.0),
    ],
)
def test_the_best_constant_answer(training: list[Row], held_out: list[Row], expected: float, tmp_path: Path) -> None:
    found = chance_level(written(tmp_path / "train.jsonl", training), written(tmp_path / "held.jsonl", held_out))
    assert found == pytest.approx(expected)


def test_with_options_it_is_at_least_a_guess(tmp_path: Path) -> None:
    check = {"kind": "choice", "options": {letter: letter.lower() for letter in "ABCD"}}
    held = written(tmp_path / "held.jsonl", [("a", "en", "A")], check)
    seen = [("a", "en", letter) for letter in "ABCD"]
    assert chance_level(written(tmp_path / "even.jsonl", seen, check), held) == 0.25
    assert chance_level(written(tmp_path / "skewed.jsonl", [*seen, *seen[:1] * 4], check), held) == 0.625
    assert chance_level(written(tmp_path / "other.jsonl", [("b", "en", "A")], check), held) == 0.25
