"""``armillary chat`` over a pipe."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main

pytest.importorskip("transformers", reason="needs the extra export")


def call(capfd: Any, monkeypatch: Any, said: str, *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["armillary", "chat", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return int(end.value.code or 0), out, err


def test_lines_of_a_pipe_are_turns(capfd: Any, monkeypatch: Any, tiny_hf: Path) -> None:
    asked = (tiny_hf, "--max-new-tokens", 5, "--threads", 1, "--json")
    code, out, _ = call(capfd, monkeypatch, "The sea?\n\n/clear\nThe sea?\nAnd now?", *asked)
    first, again, third = (json.loads(line) for line in out.splitlines())
    assert code == 0 and first == again and third["finish"] in ("stop", "length")
    code, out, err = call(capfd, monkeypatch, "The sea?\n", *asked[:-1])
    assert code == 0 and out == f"{first['text']}\n" and ("truncated" in err) == (first["finish"] == "length")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere"),
        (("--temperature", -1), "at least 0"),
        (("--max-new-tokens", 0), "at least 1"),
    ],
)
def test_wrong_input_is_one_line(
    capfd: Any, monkeypatch: Any, tiny_hf: Path, arguments: tuple[Any, ...], said: str
) -> None:
    given = arguments if arguments[0] == "nowhere" else (tiny_hf, *arguments)
    code, out, err = call(capfd, monkeypatch, "Hi\n", *given)
    assert code == 2 and said in err and out == ""
