"""``armillary post check`` and ``post sft``: what they print and refuse, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(capfd: Any, monkeypatch: Any) -> Call:
    """A verb of ``post``, in this process."""

    def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["armillary", "post", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out, err)

    return command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"instruction": f"What is {n} + 1?", "output": f"It is {n + 1}."} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_check_shows_the_trained_part(call: Call, tiny_hf: Path, data: Path) -> None:
    shown = call("check", data, "--model", tiny_hf, "--sample", 4)
    assert shown.returncode == 0 and "'It is 4.<|end|>'" in shown.stdout
    assert "conversations have the same loss packed and alone" in shown.stdout
    found = json.loads(call("check", data, "--model", tiny_hf, "--json").stdout)
    assert found["data"]["conversations"] == 30 and found["end"] == "<|end|>" and found["template"] == "folder"
    assert [piece["text"] for piece in found["sample"]["pieces"] if piece["trained"]] == ["It is 1.<|end|>"]


def test_sft_writes_a_model_and_says_what_it_did(call: Call, tiny_hf: Path, data: Path, tmp_path: Path) -> None:
    asked = ("sft", "--model", tiny_hf, "--data", data, "--eval", data, "--out", tmp_path / "out", "--epochs", 1)
    shown = call(*asked)
    assert shown.returncode == 0 and "nats per token before" in shown.stdout and "30 conversations" in shown.stderr
    found = json.loads(call(*asked, "--json").stdout)
    assert found["loss_after"] < found["loss_before"] and (Path(found["model"]) / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "fp64"], "--precision: must be one of fp32, bf16, given 'fp64'"),
        (["--too-long", "ignore"], "--too-long: must be one of refuse, cut, drop"),
        (["--layout", "rows=2"], "--layout rows=2: rows: is not a known key"),
        (["--epochs", "0"], "0 must be a finite number above 0"),
        (["--template", "chatml"], "no special token '<|im_start|>'"),
        (["--template", "missing.jinja"], "template 'missing.jinja' cannot be read as a file"),
        (["--context-length", "8"], "data.jsonl:1: has "),
        (["--lora", "--lora-alpha", "-1"], "-1 must be a finite number above 0"),
        (["--lora", "--lora-targets", "q,w"], "--lora-targets q,w: targets.1: must be 'q', 'k'"),
        (["--seed", str(2**63)], "the run cannot be made: seed"),
    ],
)
def test_what_is_wrong_is_said(
    call: Call, tiny_hf: Path, data: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = call("sft", "--model", tiny_hf, "--data", data, "--out", tmp_path / "out", *options)
    assert done.returncode == 2 and said in " ".join(done.stderr.split())


def test_files_that_are_not_there_are_named(call: Call, tiny_hf: Path, data: Path, tmp_path: Path) -> None:
    done = call("sft", "--model", tiny_hf, "--data", tmp_path / "no.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 2 and "no.jsonl: cannot be read" in done.stderr
    done = call("check", data, "--model", tmp_path)
    assert done.returncode == 2 and "tokenizer.json" in done.stderr


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_goes_on(tiny_hf: Path, data: Path, tmp_path: Path) -> None:
    asked = ["--model", tiny_hf, "--data", data, "--out", tmp_path / "out", "--epochs", 4000, "--json"]
    command = [sys.executable, "-m", "armillary", "post", "sft", *map(str, asked)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "run" / "events.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1 and "start it again to resume" in err and "Traceback" not in err
    assert list((tmp_path / "out" / "run" / "checkpoints").glob("step-*"))
