"""``armillary generate``: what it prints and writes, what it refuses, and a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from armillary.cli import main

pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")

Call = Callable[..., subprocess.CompletedProcess[str]]


def _hear_ctrl_c() -> None:
    """For a child of a process that runs in the background, and ignores SIGINT for that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def call(capfd: Any, monkeypatch: Any, tiny_gguf: Path) -> Call:
    """The verb with the small model, in this process."""

    def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["armillary", "generate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out, err)

    return command


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_prompt_is_answered_on_the_terminal(call: Call, tiny_gguf: Path) -> None:
    asked = (tiny_gguf, "--prompt", "The sky", "--max-new-tokens", 8, "--threads", 1, "--n", 2, "--temperature", 1)
    shown, document = call(*asked), json.loads(call(*asked, "--json").stdout)
    first, second = (choice["text"] for choice in document["choices"])
    assert shown.stdout == f"{first}\n--- 2\n{second}\n" and shown.stderr == ""
    assert document["backend"]["backend"] == "llama.cpp"
    assert document["cost"]["new_tokens"] == 16 == sum(choice["tokens"] for choice in document["choices"])
    chat = json.loads(call(tiny_gguf, "--prompt", "Hi", "--chat", "--system", "Be short.", "--json").stdout)
    assert (
        chat["prompt_tokens"]
        > json.loads(call(tiny_gguf, "--prompt", "Hi", "--chat", "--json").stdout)["prompt_tokens"]
    )


def test_a_file_of_prompts_gives_one_row_each_in_their_order(call: Call, tiny_gguf: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        '{"prompt": "The sky"}\n\n{"prompt": "天是", "id": "sky", "n": 2, "temperature": 1.0, "seed": 3}\n'
        '{"messages": [{"role": "user", "content": "Hi"}], "stop": ["a"], "max_new_tokens": 3}\n'
        '{"prompt": "The sky"}\n',
        encoding="utf-8",
    )
    asked = (tiny_gguf, "--file", prompts, "--out", out, "--max-new-tokens", 5)
    done = call(*asked)
    assert done.returncode == 0 and done.stdout == "" and "generate: 100%" in done.stderr
    assert "4 completions, 0 kept from before" in done.stderr
    found = rows(out)
    assert [(row["id"], len(row["choices"])) for row in found] == [(1, 1), ("sky", 2), (4, 1), (5, 1)]
    assert found[0]["choices"] == found[3]["choices"]
    assert found[1]["request"]["sampling"]["seed"] == 3 and found[2]["request"]["sampling"]["max_new_tokens"] == 3
    content = out.read_bytes()
    # a prompt is added in front: the others are not asked again
    prompts.write_text('{"prompt": "1 + 1"}\n' + prompts.read_text(encoding="utf-8"), encoding="utf-8")
    again = json.loads(call(*asked, "--json").stdout)
    assert (again["rows"], again["kept"], again["cost"]["new_tokens"]) == (5, 4, 5)
    assert [row["choices"] for row in rows(out)][1:] == [json.loads(line)["choices"] for line in content.splitlines()]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ('{"promt": "a"}', "unknown field 'promt'; nearest valid: 'prompt'"),
        ("{}", "give prompt or messages"),
        ('{"prompt": "a", "messages": []}', "give prompt or messages, not both"),
        ('{"prompt": ""}', "prompt: must be a non-empty text"),
        ('{"prompt": 3}', "prompt: must be a non-empty text"),
        ('{"prompt": "\\ud800"}', "prompt: contains a lone surrogate"),
        ('{"messages": "a"}', "messages: must be a list"),
        (
            '{"messages": [{"role": "robot", "content": "a"}]}',
            "messages[0].role: must be one of system, user",
        ),
        ('{"messages": [{"role": "user"}]}', "messages[0]: must be an object with role and content"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature: must be a number, given 'hot'"),
        ('{"prompt": "a", "temperature": -1}', "sampling: temperature must be 0"),
        ('{"prompt": "a", "n": 1.5}', "n: must be a whole number, given 1.5"),
        ('{"prompt": "a", "seed": true}', "seed: must be a whole number"),
        ('{"prompt": "a", "stop": [""]}', "stop[0]: must be a non-empty text"),
        ('{"prompt": "a", "id": [1]}', "id: must be text or a whole number"),
        ("[" * 100000, "not JSON"),
        ("\x00\xff", "not JSON"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field_before_the_model_is_opened(
    call: Call, tmp_path: Path, row: str, problem: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'{"prompt": "a"}\n' + row.encode("latin-1") + b"\n{}\n")
    done = call(tmp_path / "no-model.gguf", "--file", prompts, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and f"{prompts}:2: {problem}" in done.stderr
    assert f"{prompts}:3: give prompt or messages" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_wrong_use_is_refused(call: Call, tiny_gguf: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    for arguments, problem in (
        ((tiny_gguf,), "give --prompt, or --file with --out"),
        ((tiny_gguf, "--prompt", "a", "--file", prompts), "give --prompt, or --file with --out"),
        ((tiny_gguf, "--file", prompts), "--file and --out belong together"),
        ((tiny_gguf, "--file", tmp_path / "none", "--out", out), "No such file"),
        ((tiny_gguf, "--file", empty, "--out", out), "has no prompts"),
        ((tiny_gguf, "--prompt", "a", "--system", "b"), "add --chat"),
        ((tiny_gguf, "--prompt", "a", "--backend", "lama.cpp"), "nearest: 'llama.cpp'"),
        ((tiny_gguf, "--prompt", "a", "--device", "cpu"), "device is not an option of the llama.cpp backend"),
        ((tiny_gguf, "--prompt", "a", "--endpoint", "model=x"), "endpoint is not an option of the llama.cpp backend"),
        ((tiny_gguf, "--prompt", "a", "--endpoint", "modl=x"), "write NAME=VALUE; names: model"),
        ((tiny_gguf, "--prompt", "a", "--endpoint", "prices=1"), "endpoint setting prices: '1' is wrong"),
        ((tiny_gguf, "--prompt", "a", "--top-p", 0), "must be above 0 and at most 1"),
        ((tiny_gguf, "--prompt", "a", "--batch-size", 0), "0 must be at least 1"),
        ((tmp_path, "--prompt", "a"), "not a model that any backend recognises"),
        ((tiny_gguf, "--prompt", ""), "request 1: the prompt is empty"),
    ):
        done = call(*arguments)
        assert done.returncode == 2 and problem in done.stderr, arguments
    assert not out.exists()


def test_a_prompt_that_does_not_fit_is_named_by_its_line(call: Call, tiny_gguf: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n\n' + json.dumps({"prompt": "word " * 300}) + "\n")
    asked = (tiny_gguf, "--file", prompts, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 2)
    done = call(*asked)
    assert done.returncode == 2 and f"{prompts}:3: the prompt has" in done.stderr


def test_a_file_that_is_not_ours_is_left_as_it_is(call: Call, tiny_gguf: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    for content in ("my notes\n", '{"prompt": "a"}\n', '{"format": 2, "request": {}, "choices": []}\n', ""):
        out.write_text(content)
        done = call(tiny_gguf, "--file", prompts, "--out", out)
        assert done.returncode == 1 and str(out) in done.stderr and out.read_text() == content
    done = call(tiny_gguf, "--file", prompts, "--out", tmp_path)
    assert done.returncode == 2 and "is a folder" in done.stderr


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    call: Call, tiny_gguf: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"The sky {n}", "temperature": 1.0}) + "\n" for n in range(60)))
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    kept = tmp_path / "killed.answers.jsonl"
    asked = [str(tiny_gguf), "--file", str(prompts), "--max-new-tokens", "40", "--threads", "1", "--out"]
    command = [str(Path(sys.executable).with_name("armillary")), "generate", *asked, str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None and (not kept.exists() or kept.read_bytes().count(b"\n") < 6):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not killed.exists()
    answered = kept.read_bytes().count(b"\n") - 1
    assert 5 <= answered < 60
    resumed = json.loads(call(*asked, killed, "--json").stdout)
    assert resumed["kept"] == answered
    assert resumed["cost"]["new_tokens"] == sum(row["choices"][0]["tokens"] for row in rows(killed)[answered:])
    assert call(*asked, whole).returncode == 0
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("form", ["file", "prompt"])
def test_ctrl_c_ends_a_run_in_the_middle_of_an_answer(tiny_gguf: Path, tmp_path: Path, form: str) -> None:
    """Also inside a C++ library, whose threads must not be running when the interpreter ends."""
    prompts, kept = tmp_path / "prompts.jsonl", tmp_path / "out.answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(300)))
    out = tmp_path / "out.jsonl"
    asked = ["--prompt", "The sky"] if form == "prompt" else ["--file", str(prompts), "--out", str(out)]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("armillary")), "generate", str(tiny_gguf), *asked, "--temperature", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 (this process has no threads)
    )
    assert process.stdout is not None
    if form == "prompt":
        process.stdout.read(1)
    while form != "prompt" and process.poll() is None and (not kept.exists() or kept.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in ((0, 1) if form == "prompt" else (1,)), err
    assert "FATAL" not in err and "Traceback" not in err


class Counting(ThreadingHTTPServer):
    """An endpoint that counts how often it is asked for each prompt; ``held`` prompts are not answered until let go."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CountingHandler)
        self.asked: Counter[str] = Counter()
        self.held = threading.Event()
        self.answer_first = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """The process that asked was killed."""


class CountingHandler(BaseHTTPRequestHandler):
    server: Counting

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked[body["prompt"]] += 1
            at_once = sum(self.server.asked.values()) <= self.server.answer_first
        if not at_once:
            self.server.held.wait()
        choice = {"index": 0, "text": f"{body['prompt']}!", "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        data = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_over_a_server_repeats_what_was_under_way_and_nothing_else(
    call: Call, tmp_path: Path, way: signal.Signals
) -> None:
    prompts, out, kept = (tmp_path / name for name in ("prompts.jsonl", "out.jsonl", "out.answers.jsonl"))
    prompts.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(40)))
    with Counting() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.answer_first = 17
        asked = [
            *(f"http://127.0.0.1:{server.server_address[1]}/v1", "--endpoint", "model=m", "--batch-size", "4"),
            *("--endpoint", "prices=1000000,1000000", "--file", str(prompts), "--out", str(out), "--json"),
        ]
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("armillary")), "generate", *asked],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 (this process has no threads)
        )
        try:
            # 17 answers are kept, and 4 requests wait for theirs
            while process.poll() is None and (sum(server.asked.values()) < 21 or kept.read_bytes().count(b"\n") < 18):
                time.sleep(0.01)
        finally:
            process.send_signal(way)
        _, err = process.communicate(timeout=30)
        assert "Traceback" not in err and not out.exists()
        if way == signal.SIGINT:
            assert process.returncode == 1 and "stopped; the same command resumes" in err
        assert kept.read_bytes().count(b"\n") == 18 and set(server.asked.values()) == {1}
        under_way = set(server.asked) - {json.loads(line)["answer"]["choices"][0]["text"][:-1]
                                         for line in kept.read_bytes().splitlines()[1:]}  # fmt: skip
        server.held.set()
        resumed = json.loads(call(*asked).stdout)
        server.shutdown()
    assert (resumed["rows"], resumed["kept"], resumed["cost"]["money"]) == (40, 17, 23 * 3)
    assert {prompt for prompt, count in server.asked.items() if count == 2} == under_way and len(under_way) == 4
    assert [row["choices"][0]["text"] for row in rows(out)] == [f"p{n}!" for n in range(40)]
