"""``armillary evaluate``: its JSON, its files, and what it says of wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main
from armillary.evaluate.tasks import default_folder
from armillary.store import Store

pytest.importorskip("lm_eval")

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(capfd: Any, monkeypatch: Any, tmp_path: Path) -> Call:
    """The verb in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARMILLARY_EVALUATION", raising=False)

    def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["armillary", "evaluate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out, err)

    return command


def test_a_model_is_examined_compared_and_audited(call: Call, folder: Path, data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--backend", "transformers", "--device", "cpu", "--max-new-tokens", 4, "--shots", 1)
    ended = call(folder, "--tasks", "gsm8k, cmmlu", "--limit", 2, *common, "--out", "a", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert set(found) == {"results", "model", "backend", "cost"}
    first = found["results"][0]
    wanted = {
        "task",
        "subset",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "truncated",
        "extraction_disagreement",
        "settings",
        "context_cut",
    }
    assert set(first) == wanted and first["n"] == 2
    assert {file.name for file in (tmp_path / "a" / "items").iterdir()} == {"gsm8k.jsonl", "cmmlu.jsonl"}
    assert call(folder, "--tasks", "gsm8k", "--limit", 3, *common, "--out", "b").returncode == 0
    (strict, _) = json.loads(call("compare", "a", "b", "--json").stdout)
    assert strict["paired"]["items"] == 2 and strict["left_out"] == 1 and strict["same_settings"]
    assert isinstance(json.loads(call("audit", "a", "--json").stdout), list)
    assert json.loads(call("rescore", "a", "--json").stdout)["results"][0]["metric"] == "exact_match"
    ended = call("rescore", "a", "--out", "a")
    assert ended.returncode == 2 and "a: has an examination, whose scores would be lost" in ended.stderr
    assert call("rescore", "a", "--out", "c").returncode == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--tasks", "gsm9k"), "did you mean 'gsm8k'"),
        (("--limit", "0"), "0 must be at least 1"),
        (("--data", "nowhere"), "nowhere: no such folder"),
        (("--variants", "9"), "give 1 to 4"),
        (("--shots", "99"), "99 few-shot examples requested, but only 8 available"),
    ],
)
def test_wrong_input_is_named(call: Call, folder: Path, data: Path, change: tuple[str, str], words: str) -> None:
    ended = call(folder, "--tasks", "gsm8k", "--data", data, *change)
    assert ended.returncode == 2 and words in " ".join(ended.stderr.split())


def test_a_model_that_is_not_there_leaves_no_folder(call: Call, data: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    assert call("nomodel", "--tasks", "gsm8k", "--data", data).returncode == 2
    assert set(tmp_path.iterdir()) == before


def test_an_examination_is_recorded_in_a_store(call: Call, folder: Path, data: Path, tmp_path: Path) -> None:
    command = (folder, "--tasks", "gsm8k", "--data", data, "--backend", "transformers", "--device", "cpu", "--limit", 2)
    command += ("--shots", 0, "--max-new-tokens", 2, "--out", "a")
    ended = call(*command, "--store", "nowhere")
    assert ended.returncode == 2 and "no store.sqlite" in " ".join(ended.stderr.split())
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "a").exists()
    Store(tmp_path / "store").close()
    ended = call(*command, "--store", "store", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    store = Store(tmp_path / "store")
    ((key, row),) = store.examinations()[""]
    assert key == found["examination"] and row["results"] == found["results"] and row["model"] == found["model"]
    assert row["sha256"] == sha256((tmp_path / "a" / "results.json").read_bytes()).hexdigest()
    assert store.verify() == []


def test_an_unfinished_folder_is_not_compared(call: Call, tmp_path: Path) -> None:
    ended = call("compare", tmp_path, tmp_path)
    assert ended.returncode == 2 and "finish it first" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("models/Qwen-1.5/", "exam-Qwen-1.5"),
        ("a/Smol.Q4_1.gguf", "exam-Smol.Q4_1"),
        ("https://user:secret@host:8000/v1", "exam-host"),
        (".", "exam-model"),
    ],
)
def test_results_have_a_folder_of_the_models_name(target: str, name: str) -> None:
    assert default_folder(target) == Path(name)
