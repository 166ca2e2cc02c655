"""A server's life: places that clients leave, a full queue, the end by signals, tokens, and addresses."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from armillary.cli import main
from server_process import Server

ENDLESS: dict[str, Any] = {"prompt": "The sky", "max_tokens": 50_000, "temperature": 0.9, "seed": 1}
TOKEN = "very-secret-token"


@pytest.fixture(scope="module")
def started() -> Iterator[list[Server]]:
    """The server of ``open_server``, where it has started."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.http.close()
        server.process.kill()
        server.process.communicate()


@pytest.fixture
def open_server(endless: Path, started: list[Server]) -> Server:
    """A server for all addresses, with a token and 3 places; its answers do not end. A test may end it."""
    if not started or started[-1].process.poll() is not None:
        one = Server(endless, "--host", "0.0.0.0", "--batch-size", 3, "--queue", 1, token=TOKEN)
        one.root = one.root.replace("0.0.0.0", "127.0.0.1")
        one.url = f"{one.root}/v1"
        one.http.base_url = one.root
        started.append(one)
    return started[-1]


@pytest.fixture
def client(open_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=open_server.url, api_key=TOKEN, max_retries=0)


def stream(server: Server, stack: ExitStack, **changes: Any) -> Iterator[str]:
    """The lines of a streamed answer that does not end, after the first of them. Without a reference it is closed."""
    body = {**ENDLESS, "stream": True, **changes}
    response = stack.enter_context(server.http.stream("POST", "/v1/completions", json=body))
    lines = response.iter_lines()
    assert response.status_code == 200 and next(lines).startswith("data: ")
    return (line for line in lines if line)


def test_a_client_that_goes_frees_its_place(open_server: Server) -> None:
    server = open_server
    gone = server.metric("armillary_cancelled_requests_total")
    with ExitStack() as stack, ExitStack() as first, concurrent.futures.ThreadPoolExecutor(1) as pool:
        streams = [stream(server, first), stream(server, stack), stream(server, stack)]
        assert (server.metric("armillary_running"), server.metric("armillary_waiting")) == (3, 0)
        short = pool.submit(server.http.post, "/v1/completions", json={"prompt": "a", "max_tokens": 3})
        server.until(lambda: server.metric("armillary_waiting") == 1)
        assert not short.done()
        first.close()  # the waiting one takes its place
        assert short.result(60).status_code == 200
        assert server.metric("armillary_cancelled_requests_total") == gone + 1
        assert all(next(one) for one in streams[1:])
    server.until(lambda: server.metric("armillary_running") == 0)
    # a client that waits for a whole answer
    with pytest.raises(httpx2.ReadTimeout):
        server.http.post("/v1/completions", json=ENDLESS, timeout=0.3)
    server.until(lambda: server.metric("armillary_cancelled_requests_total") == gone + 4)
    assert server.http.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_client_that_is_killed_frees_its_place(open_server: Server) -> None:
    gone = open_server.metric("armillary_cancelled_requests_total")
    code = (
        "import httpx2\n"
        f"head = {{'Authorization': 'Bearer {TOKEN}'}}\n"
        f"with httpx2.stream('POST', '{open_server.url}/completions', headers=head, json={ENDLESS | {'stream': True}})"
        " as answer:\n    for line in answer.iter_lines(): print(line, flush=True)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert client.stdout is not None and client.stdout.readline()
    assert open_server.metric("armillary_running") == 1
    client.kill()
    client.communicate()
    open_server.until(lambda: open_server.metric("armillary_running") == 0)
    assert open_server.metric("armillary_cancelled_requests_total") == gone + 1


def test_a_full_queue_says_when_to_come_back(open_server: Server, client: openai.OpenAI) -> None:
    server = open_server
    with ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as pool:
        streams = [stream(server, stack) for _ in range(3)]
        waits = pool.submit(server.http.post, "/v1/completions", json={"prompt": "a", "max_tokens": 2})
        server.until(lambda: server.metric("armillary_waiting") == 1)
        with pytest.raises(openai.RateLimitError, match="1 answers are waiting and the queue is full") as error:
            client.completions.create(model="tiny", prompt="The", max_tokens=2)
        assert error.value.code == "queue_full" and 1 <= int(error.value.response.headers["retry-after"]) <= 60
        assert server.metric("armillary_requests_total", path="/v1/completions", status="429") == 1
        assert all(next(one) for one in streams)
        stack.close()
        assert waits.result(60).status_code == 200
    server.until(lambda: server.metric("armillary_running") == 0)
    # a request with more answers than the queue has room for is taken by an idle server
    assert len(client.completions.create(model="tiny", prompt="a", n=9, max_tokens=2).choices) == 9


def test_a_token_is_needed(open_server: Server, client: openai.OpenAI) -> None:
    for key in ("wrong", TOKEN[:-1], f"{TOKEN}2", "ä"):
        answer = httpx2.get(f"{open_server.url}/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(f"{open_server.url}/models").status_code == 401
    assert httpx2.get(f"{open_server.root}/metrics").status_code == 401
    assert httpx2.get(f"{open_server.root}/health").status_code == 200
    assert client.models.list().data
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=open_server.url, api_key="guess", max_retries=0).models.list()


def test_the_first_signal_drains_and_the_second_ends(open_server: Server, client: openai.OpenAI) -> None:
    server = open_server
    with ExitStack() as stack:
        finite, endless = stream(server, stack, max_tokens=1500), stream(server, stack)
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.http.get("/health").status_code == 503)
        with pytest.raises(openai.InternalServerError, match="shutting down") as error:
            client.completions.create(model="tiny", prompt="The")
        assert error.value.status_code == 503 and error.value.response.headers["retry-after"] == "1"
        *_, last, done = finite
        assert done == "data: [DONE]" and json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"]
        assert next(endless) and server.process.poll() is None
        code, err = server.end(signal.SIGINT)
        assert code == 0 and err == ""  # and no token in it
        try:
            *_, last = endless
        except httpx2.HTTPError:
            pass  # the connection was cut
        else:
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopped"
    with pytest.raises(openai.APIConnectionError):
        client.completions.create(model="tiny", prompt="The")


def test_beyond_loopback_there_must_be_a_token(tiny_hf: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("ARMILLARY_SERVE_TOKEN", raising=False)
    code, err = call(capfd, monkeypatch, tiny_hf, "--host", "0.0.0.0")
    assert code == 2 and "set the environment variable ARMILLARY_SERVE_TOKEN" in err
    monkeypatch.setenv("ARMILLARY_SERVE_TOKEN", "two words")
    code, err = call(capfd, monkeypatch, tiny_hf, "--host", "0.0.0.0")
    assert code == 2 and "not a valid token" in err and "two words" not in err


def test_a_page_of_another_name_does_not_reach_loopback(server: Server) -> None:
    assert server.http.get("/v1/models", headers={"Host": "evil.example:8000"}).status_code == 403
    for name in ("localhost", "localhost:1", "127.0.0.1:80", "[::1]:80", "[::1]"):
        assert server.http.get("/v1/models", headers={"Host": name}).status_code == 200


def call(capfd: Any, monkeypatch: Any, *arguments: Any) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["armillary", "serve", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert "Traceback" not in err and out == ""
    return int(end.value.code or 0), " ".join(err.split())


def test_wrong_use_is_one_line(tiny_hf: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, said in (
            ((tiny_hf, "--port", taken.getsockname()[1]), "another program may listen there: give another --port"),
            (
                (tiny_hf, "--backend", "fast"),
                "backend 'fast' is unknown; known are auto, native, llama.cpp, vllm, transformers",
            ),
            ((tiny_hf, "--backend", "vllm"), "vLLM is not installed"),
            ((tiny_hf, "--port", 0, "--name", " "), "name must not be empty"),
            ((tiny_hf, "--port", 0, "--context", 4096), "context 4096 is more than the 128"),
            ((tiny_hf, "--host", "nowhere.invalid"), "ARMILLARY_SERVE_TOKEN"),
            (("https://host/v1",), "is already a server"),
            ((tmp_path, "--port", 0), "not a model that any backend recognises"),
        ):
            code, err = call(capfd, monkeypatch, *arguments)
            assert code == 2 and said in err, err


def test_vllm_serves_where_it_is_installed(tiny_hf: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ARMILLARY_SERVE_TOKEN", "hidden-from-ps")
    runs: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == arguments[0] == str(program)
        runs.append((arguments[1:], environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    code, _ = call(capfd, monkeypatch, tiny_hf, "--backend", "vllm", "--context", 64, "--batch-size", 9)
    assert code == 0 and runs[0][0] == [
        "serve", str(tiny_hf), "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "hf",
        "--max-model-len", "64", "--max-num-seqs", "9",
    ]  # fmt: skip
    assert runs[0][1]["VLLM_API_KEY"] == "hidden-from-ps"
    call(capfd, monkeypatch, tiny_hf, "--name", "mine", "--precision", "bfloat16")  # found by itself
    assert runs[1][0][-4:] == ["--served-model-name", "mine", "--dtype", "bfloat16"]
    code, err = call(capfd, monkeypatch, tiny_hf, "--backend", "vllm", "--threads", 2)
    assert code == 2 and "--threads is not an option of the vllm backend" in err
    code, err = call(capfd, monkeypatch, tmp_path, "--backend", "vllm")
    assert code == 2 and "vLLM reads Hugging Face folders; run `armillary convert" in err and len(runs) == 2


def test_chat_talks_with_a_server(server: Server, capfd: Any, monkeypatch: Any) -> None:
    def chat(target: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["armillary", "chat", target, "--max-new-tokens", "12", *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO("The sea?\nAnd now?\n"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return str(capfd.readouterr().out)

    hot = ("--temperature", "0.8", "--seed", "5")
    answers = chat(server.root, *hot, "--json")
    assert answers == chat(server.url, *hot, "--json") and len(answers.splitlines()) == 2
    assert len(chat(server.root, *hot).splitlines()) >= 2


def test_metrics_count_what_was_done(server: Server) -> None:
    before = {name: server.metric(name) for name in ("armillary_prompt_tokens_total", "armillary_new_tokens_total")}
    whole = server.metric("armillary_request_seconds_count", path="/v1/completions")
    usage = server.http.post("/v1/completions", json={"prompt": "The sky", "max_tokens": 5, "n": 2}).json()["usage"]
    assert (
        server.metric("armillary_prompt_tokens_total") - before["armillary_prompt_tokens_total"]
        == usage["prompt_tokens"]
    )
    assert (
        server.metric("armillary_new_tokens_total") - before["armillary_new_tokens_total"] == usage["completion_tokens"]
    )
    assert server.metric("armillary_request_seconds_count", path="/v1/completions") == whole + 1
    assert server.metric("armillary_first_piece_seconds_count") > 0 and server.metric("armillary_slots") == 8
    assert server.metric("process_resident_memory_bytes") > 1e7


def test_a_crowd_loses_no_answer(server: Server) -> None:
    """More requests at a time than places, streamed and whole, some of which go away."""
    expected = server.http.post("/v1/completions", json={"prompt": "The", "max_tokens": 30, "seed": 0}).json()
    found: list[str] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        body = {"prompt": "The", "max_tokens": 30, "seed": 0}
        if number % 3 == 0:
            with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                if number % 2:
                    return
                events = [line.removeprefix("data: ") for line in response.iter_lines() if line][:-1]
            text = "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
        else:
            text = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with lock:
            found.append(text)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(72)))
    assert len(found) == 60 and set(found) == {expected["choices"][0]["text"]}
    server.until(lambda: server.metric("armillary_running") + server.metric("armillary_waiting") == 0)
