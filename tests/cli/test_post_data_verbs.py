"""``armillary post synthesize`` and ``post verify``: what they print and write, and what they refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: Any, monkeypatch: Any) -> Call:
    """Exit code, output and errors of ``armillary post …`` in this process."""

    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["armillary", "post", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return command


def test_from_questions_to_verified_ones(call: Call, tmp_path: Path) -> None:
    made = ("synthesize", "--n", 12, "--families", "tally,linear", "--levels", "1,2", "--out", tmp_path / "made")
    code, out, err = call(*made)
    assert code == 0 and "items.jsonl: 12 items of 12" in out and "verified: 100.0% (75.8% to 100.0%) of 12" in out
    assert "synthesize: 100%" in err
    record = json.loads(call(*made, "--json")[1])
    assert record["counts"]["by"]["family"] == {"linear": 6, "tally": 6}
    items = tmp_path / "made" / "items.jsonl"
    lines = items.read_text(encoding="utf-8").replace("answer is", "answer is not", 1)
    (tmp_path / "changed.jsonl").write_text(lines, encoding="utf-8")
    code, out, _ = call("verify", tmp_path / "changed.jsonl", "--out", tmp_path / "verified")
    assert code == 0 and "11 items of 12" in out and "dropped, unreadable: 1" in out
    assert json.loads(call("verify", items, "--out", tmp_path / "all", "--json")[1])["counts"]["kept"] == 12


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("synthesize", "--out", "x", "--families", "taly"), "no family 'taly'; nearest: 'tally'"),
        (("synthesize", "--out", "x", "--levels", "one"), "levels: must be whole numbers with commas"),
        (("synthesize", "--out", "x", "--language", "fr"), "languages: must be out of zh, en"),
        (("synthesize", "--out", "x", "--n", 1, "--teacher", "none"), "none: not a model that any backend"),
        (("verify", "none.jsonl", "--out", "x"), "none.jsonl: No such file"),
        (("verify",), "give a file of items and --out, or --calibrate"),
        (("verify", "a.jsonl", "--calibrate"), "--calibrate takes no data"),
    ],
)
def test_what_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2 and problem in " ".join(err.split())
    assert not Path("x/items.jsonl").exists()


def test_a_folder_of_other_settings_is_refused(call: Call, tmp_path: Path) -> None:
    made = ("synthesize", "--families", "tally", "--out", tmp_path / "made", "--n")
    assert call(*made, 4)[0] == 0
    code, _, err = call(*made, 5)
    assert code == 2 and "n was 4 and is 5" in " ".join(err.split())
