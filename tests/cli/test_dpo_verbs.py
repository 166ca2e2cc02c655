"""The verbs that select pairs and train on them, as a caller sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["armillary", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    words = ("one", "two", "three", "four", "The sky", "The sea")
    rows = [{"prompt": f"{a}?", "chosen": a, "rejected": b} for a in words for b in words if a != b]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_selected_and_trained_on(call: Any, tiny_hf: Path, data: Path, tmp_path: Path) -> None:
    selection = tmp_path / "selection"
    code, out, _ = call(
        "post", "select", "--model", tiny_hf, "--data", data, "--out", selection, "--rejected-from", 0.3
    )
    assert code == 0 and "also drawn at random" in out
    code, out, _ = call(
        "post", "select", "--model", tiny_hf, "--data", data, "-o", selection, "--rejected-from", 0.3, "--json"
    )
    found = json.loads(out)
    assert code == 0 and found["counts"]["selected"] == len(Path(found["selected"]).read_text().splitlines())
    options = ("--eval", data, "--epochs", 2, "--lr", 1e-3, "--loss", "ipo", "--sft-weight", 0.1)
    arguments = ("post", "dpo", "--model", tiny_hf, "--data", found["selected"], "--out", tmp_path / "out", *options)
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "held out: the chosen answer is more likely in" in out and "reward accuracy" in out
    code, out, _ = call(*arguments, "--json")
    assert code == 0 and json.loads(out)["objective"]["loss"] == "ipo"


def test_pairs_are_sampled_and_what_makes_none_is_counted(call: Any, tiny_hf: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    messages = [{"role": "user", "content": "1 + 1 = ?"}]
    rows = [{"messages": messages, "answer": "2", "check": {"kind": "math"}}, {"messages": messages, "answer": "2"}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("post", "pairs", tiny_hf, "--items", questions, "--out", tmp_path / "pairs")
    sampling = ("--samples", 2, "--temperature", 0.9, "--max-new-tokens", 4)
    code, out, err = call(*arguments, *sampling)
    assert code == 0 and "0 pairs from 2 questions" in out and "1 no check" in out, err
    code, out, _ = call(*arguments, *sampling, "--json")
    assert code == 0 and json.loads(out)["counts"]["decided"] == 2
    code, _, err = call(*arguments, "--temperature", 0)
    assert code == 2 and "temperatures must be above 0" in err
    code, out, err = call(*arguments[:-1], tmp_path / "judged", *sampling, "--judge", tiny_hf)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--loss", "dpo"), "--loss: must be one of sigmoid"),
        (("--label-smoothing", "0.6"), "label_smoothing: must be below 0.5"),
        (("--loss", "ipo", "--label-smoothing", "0.1"), "belongs to losses"),
        (("--beta", "0"), "a finite number above 0"),
        (("--layout", "tp=3"), "tp"),
        (("--context-length", "8"), "raise --context-length"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    call: Any, tiny_hf: Path, data: Path, tmp_path: Path, arguments: Any, said: str
) -> None:
    code, _, err = call("post", "dpo", "--model", tiny_hf, "--data", data, "--out", tmp_path / "out", *arguments)
    assert code == 2 and said in err and "Traceback" not in err
