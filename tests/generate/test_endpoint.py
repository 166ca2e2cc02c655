"""OpenAI-compatible servers, among them those that fail in each way; and that the key is nowhere to be found."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from armillary.generate import (
    BackendOptions,
    BadRequestError,
    Completion,
    EndpointOptions,
    Message,
    Pair,
    Prices,
    Request,
    RequestError,
    Sampling,
    endpoint,
    open_answers,
    open_backend,
)
from armillary.recipe import ArmillaryError, ForeignFileError, UsageError

KEY = "sk-very-secret-0123456789"

Act = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers properly, after it has done what its server's list ``acts`` holds, one for each request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.send(200, {"data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.headers.append(dict(self.headers))
            self.server.bodies.append(body)
            act = self.server.acts.pop(0) if self.server.acts else answer
        act(self, body)

    def send(self, status: int, document: Any, **headers: str) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server in this process. It answers a prompt with its letters in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts: list[Act] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[dict[str, Any]] = [{"id": "tiny", "max_model_len": 77}]
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        pass


def whole(body: dict[str, Any]) -> dict[str, Any]:
    chat = "messages" in body
    said = body["messages"][-1]["content"] if chat else body["prompt"]
    text = "".join(said)[::-1][: body["max_tokens"]] if isinstance(said, str) else ""
    cut = len(text) < len(said)
    choices = [
        {
            "index": n,
            "finish_reason": "length" if cut else "stop",
            **({"message": {"role": "assistant", "content": f"{text}{n}"}} if chat else {"text": f"{text}{n}"}),
        }
        for n in range(body.get("n", 1))
    ]
    return {"choices": choices[::-1], "usage": {"prompt_tokens": len(said), "completion_tokens": 10}}


def answer(handler: Handler, body: dict[str, Any]) -> None:
    if handler.path == "/tokenize":
        return handler.send(200, {"tokens": list(body["prompt"].encode())})
    if body.get("echo"):
        # the log probability of a token is minus its number over 100; "e" is always the most likely one
        tokens = [*body["prompt"], 1]
        own = [None, *(-token / 100 for token in tokens[1:])]
        top = [None, *({"e": -1.01, "own": -token / 100} for token in tokens[1:])]
        choice = {"text": "", "finish_reason": "length", "logprobs": {"token_logprobs": own, "top_logprobs": top}}
        return handler.send(200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    if body.get("stream"):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        document = whole(body)
        for choice in document["choices"]:
            text = choice.get("text") or choice["message"]["content"]
            for letter in text:
                part = {"delta": {"content": letter}} if "message" in choice else {"text": letter}
                event = {"choices": [{"index": choice["index"], "finish_reason": None, **part}]}
                handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            event = {"choices": [{"index": choice["index"], "finish_reason": choice["finish_reason"], "text": ""}]}
            handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        handler.wfile.write(f"data: {json.dumps({'choices': [], 'usage': document['usage']})}\n\n".encode())
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True
        return None
    return handler.send(200, whole(body))


def status(code: int, **headers: str) -> Act:
    return lambda handler, _: handler.send(code, {"error": {"message": f"no luck with {KEY}"}}, **headers)


def drop(handler: Handler, _: dict[str, Any]) -> None:
    handler.close_connection = True


def half(handler: Handler, body: dict[str, Any]) -> None:
    data = json.dumps(whole(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def hang(handler: Handler, _: dict[str, Any]) -> None:
    time.sleep(1)
    handler.close_connection = True


def dribble(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _n in range(12):
        handler.wfile.write(b" ")
        time.sleep(0.1)
    handler.close_connection = True


def no_json(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, f"<html>{KEY}</html>".encode())


def deep(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, b"[" * 100_000)


def a_list(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, [1])


def no_choices(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, {"error": {"message": "overloaded"}})


def unfinished(handler: Handler, body: dict[str, Any]) -> None:
    document = whole(body)
    document["choices"][0]["finish_reason"] = None
    handler.send(200, document)


def no_text(handler: Handler, body: dict[str, Any]) -> None:
    document = whole(body)
    document["choices"][0]["text"] = 3
    handler.send(200, document)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def opened(server: Server, batch_size: int | None = None, tokenizer: Path | None = None, **options: Any) -> Any:
    own = EndpointOptions(**{"model": "tiny", "retries": 2, "timeout_s": 20.0, **options})
    return open_backend(server.url, BackendOptions(batch_size=batch_size, tokenizer=tokenizer, endpoint=own))


def in_order(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.index)


def test_requests_are_sent_whole_and_answers_read_whole(server: Server) -> None:
    backend = opened(server, prices=Prices(prompt=1000.0, answer=100_000.0), extra={"chat_template_kwargs": {"a": 1}})
    greedy, drawn = Sampling(max_new_tokens=3), Sampling(20, 0.5, 0.9, 7, ("c", "zz"), 4, 2)
    found = in_order(
        backend.complete(
            [
                Request("abcdef", greedy),
                Request("abcdef", drawn),
                Request((Message("system", "x"), Message("user", "héé")), greedy),
            ]
        )
    )
    assert [[choice.text for choice in completion.choices] for completion in found] == [
        ["fed0"],
        ["fed", "fed"],
        ["ééh0"],
    ]
    assert [[choice.finish for choice in completion.choices] for completion in found] == [
        ["length"],
        ["stop", "stop"],
        ["stop"],
    ]
    assert [sum(choice.tokens for choice in completion.choices) for completion in found] == [10, 10, 10]
    cost = backend.cost
    assert (cost.prompt_tokens, cost.new_tokens) == (15, 30) and cost.money == pytest.approx(0.015 + 3.0)
    common = {"model": "tiny", "max_tokens": 3, "temperature": 0.0, "chat_template_kwargs": {"a": 1}}
    drawn_body = {"top_p": 0.9, "seed": 4, "top_k": 7, "stop": ["c", "zz"], "n": 2, "temperature": 0.5}
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "héé"}]
    for body in (
        {**common, "prompt": "abcdef"},
        {**common, "prompt": "abcdef", **drawn_body, "max_tokens": 20},
        {**common, "messages": messages},
    ):
        assert body in server.bodies
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(backend.identity) and backend.identity["url"] == server.url


def test_a_field_that_a_server_does_not_take_can_be_left_out(server: Server) -> None:
    drop_fields = {"temperature": None, "max_completion_tokens": 5, "top_p": None}
    next(opened(server, extra=drop_fields).complete([Request("abc", Sampling(temperature=1.0))]))
    assert server.bodies[-1].keys() == {"model", "prompt", "max_tokens", "seed", "max_completion_tokens"}


def test_the_interface_can_be_chosen(server: Server) -> None:
    (found,) = opened(server, api="chat").complete([Request("ab", Sampling(max_new_tokens=9))])
    assert found.choices[0].text == "ba0" and server.bodies[-1]["messages"] == [{"role": "user", "content": "ab"}]
    with pytest.raises(BadRequestError, match="request 1: messages need the chat interface"):
        list(opened(server, api="completions").complete([Request((Message("user", "a"),))]))


@pytest.mark.parametrize(
    "act",
    [
        *(status(code) for code in (408, 429, 500, 502, 503, 504, 529)),
        *(drop, half, no_json, deep, a_list, no_choices, unfinished, no_text),
    ],
)
def test_what_passes_is_tried_again(server: Server, act: Act) -> None:
    backend, request = opened(server), Request("abc", Sampling(max_new_tokens=9))
    server.acts = [act, act]
    assert [choice.text for choice in next(backend.complete([request])).choices] == ["cba0"]
    assert len(server.bodies) == 3
    server.acts = [act] * 3
    with pytest.raises(RequestError, match=r"request 1: .*/completions: .*\(3 attempts\)"):
        next(backend.complete([request]))


@pytest.mark.parametrize("act", [hang, dribble])
def test_a_server_that_hangs_costs_the_timeout_and_no_more(server: Server, act: Act) -> None:
    backend = opened(server, timeout_s=0.3, retries=1)
    server.acts = [act]
    assert next(backend.complete([Request("abc")])).choices[0].text == "cba0"
    server.acts = [act, act]
    with pytest.raises(RequestError, match=r"answer within 0\.3 s \(2 attempts\)"):
        next(backend.complete([Request("abc")]))


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (400, r"status 400 \(no luck with \*\*\*\)"),
        (401, r"status 401 .*; check the key in OPENAI_API_KEY"),
        (404, r"status 404 .*; check the URL and the name of the model, 'tiny'"),
        (422, "status 422"),
    ],
)
def test_what_does_not_pass_is_raised_at_once(server: Server, code: int, problem: str) -> None:
    server.acts = [status(code)]
    with pytest.raises(RequestError, match=problem):
        next(opened(server).complete([Request("abc")]))
    assert len(server.bodies) == 1


def test_retry_after_is_honoured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None:
                return super().wait()
            waits.append(timeout)
            return self.is_set()

    backend = opened(server)
    server.acts = [status(429, Retry_After="7"), status(503)]
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Event", Recorded)
        next(backend.complete([Request("abc")]))
    assert 7.0 in waits and any(0 < wait < 0.1 for wait in waits)
    server.acts = [status(429, Retry_After="100000")]
    with pytest.raises(RequestError, match="the server asks to wait 100000 s"):
        next(backend.complete([Request("abc")]))
    assert server.acts == []


def test_a_date_in_retry_after_is_read() -> None:
    assert endpoint._retry_after(httpx2.Headers({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})) == 0
    assert endpoint._retry_after(httpx2.Headers({"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"})) > 10**9
    for odd in ("", "soon", "-5", "nan", "1e999"):
        assert endpoint._retry_after(httpx2.Headers({"Retry-After": odd})) in (0, float("inf"))


def test_the_wrong_number_of_choices_is_refused_and_still_paid_for(server: Server) -> None:
    backend = opened(server, prices=Prices(1e6, 1e6))
    server.acts = [lambda handler, body: handler.send(200, whole({**body, "n": 1}))]
    with pytest.raises(
        RequestError, match=r"the server returned 1 choices instead of 3; request the answers one by one"
    ):
        next(backend.complete([Request("abc", Sampling(temperature=1.0, n=3))]))
    assert len(server.bodies) == 1 and backend.cost.money == 13


def test_money_is_not_known_where_a_server_does_not_count(server: Server) -> None:
    backend = opened(server, prices=Prices(1.0, 1.0))
    server.acts = [lambda handler, body: handler.send(200, {"choices": whole(body)["choices"]})]
    assert next(backend.complete([Request("abc")])).prompt_tokens == 0
    assert backend.cost.money is None


def test_the_key_does_not_follow_a_redirect(server: Server) -> None:
    with Server() as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for code in (301, 302, 307, 308):
            server.acts = [status(code, Location=f"{elsewhere.url}/completions?key={KEY}")]
            with pytest.raises(RequestError, match=r"redirects to http.*key=\*\*\*; the key is not sent there"):
                next(opened(server).complete([Request("abc")]))
        elsewhere.shutdown()
        assert elsewhere.headers == []


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_the_key_is_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Not in messages, exceptions and what hangs on them, logs, output, the identity, the cache or the answers."""
    caplog.set_level(logging.DEBUG)
    cache, kept = tmp_path / "cache", tmp_path / "answers.jsonl"

    def repeats(handler: Handler, body: dict[str, Any]) -> None:
        document = whole(body)
        document["choices"][0]["text"] = f"your key is {KEY}"
        handler.send(200, {**document, "debug": dict(handler.headers)})

    def escaped(code: int, document: dict[str, Any]) -> Act:
        written = json.dumps(document).replace(KEY, KEY.replace("-", "\\u002d"))
        return lambda handler, _: handler.send(code, written.encode())

    def repeats_escaped(handler: Handler, body: dict[str, Any]) -> None:
        document = whole(body)
        document["choices"][0]["text"] = f"your key is {KEY}"
        escaped(200, document)(handler, body)

    backend = opened(server, cache=cache, retries=0, timeout_s=0.3)
    with open_answers(kept, backend.identity) as answers:
        for number, act in enumerate((repeats, repeats_escaped)):
            server.acts = [act]
            (found,) = answers.complete(backend, [Request(f"kept {number}")])
            assert found.choices[0].text == "your key is ***"
    acts = [escaped(code, {"error": {"message": f"no luck with {KEY}"}}) for code in (400, 401, 500)]
    acts += [status(400), status(401), status(500), drop, half, hang, no_json, no_choices, unfinished]
    for number, act in enumerate([*acts, status(302, Location=f"http://127.0.0.1/{KEY}")]):
        server.acts = [act]
        with pytest.raises(RequestError) as caught:
            next(backend.complete([Request(f"abc {number}")]))
        text = "".join(traceback.format_exception(caught.value))
        for error in chain(caught.value):
            text += repr(error) + repr(vars(error))
            assert not isinstance(error, httpx2.HTTPError)
        assert KEY not in text
        server.acts = [act, act]
        with pytest.raises(ArmillaryError) as caught:
            list(backend.stream(Request(f"abc {number}")))
        assert KEY not in "".join(map(repr, chain(caught.value)))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"your key is ***" in written
    assert KEY.encode() not in written
    assert KEY not in caplog.text + "".join(capfd.readouterr()) + repr(backend) + repr(vars(backend)["_options"])


def test_a_key_that_is_none_is_refused_without_being_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-1\r\nHost: evil", "sk- 1", "schlüssel-1"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(UsageError, match="variable MY_KEY is not a valid key") as caught:
            opened(server, key_variable="MY_KEY")
        assert key not in str(caught.value)
    monkeypatch.delenv("MY_KEY")
    server.acts = [status(401)]
    with pytest.raises(RequestError, match="set the environment variable MY_KEY"):
        next(opened(server, key_variable="MY_KEY").complete([Request("a")]))
    assert "Authorization" not in server.headers[-1]


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "http://", "https:///v1", "http://user:pa55@host/v1", "http://host/v1?key=pa55", "http://h:x/"],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(url)
    assert "pa55" not in str(caught.value)


def test_the_model_is_found_where_there_is_one(server: Server) -> None:
    for url in (server.url, server.url.removesuffix("/v1"), f"{server.url}/chat/completions", f"{server.url}/"):
        backend = open_backend(url)
        assert backend.identity["model"] == "tiny" and backend.context == 77
        assert backend.identity["url"] == server.url
    server.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(ArmillaryError, match="has 2 models; name one of them: a, b"):
        open_backend(server.url)
    with pytest.raises(UsageError, match="does not report the context of a"):
        _ = opened(server, model="a").context
    server.server_close()
    server.shutdown()
    with pytest.raises(ArmillaryError, match="the connection failed"):
        open_backend(server.url)


def test_as_many_requests_as_allowed_are_under_way(server: Server) -> None:
    together = threading.Barrier(4)
    running, most = 0, 0

    def meet(handler: Handler, body: dict[str, Any]) -> None:
        nonlocal running, most
        with server.lock:
            running += 1
            most = max(most, running)
        together.wait(10)
        with server.lock:
            running -= 1
        answer(handler, body)

    server.acts = [meet] * 8
    found = list(opened(server, batch_size=4).complete(Request(f"{n}") for n in range(8)))
    assert len(found) == 8 and most == 4


def test_answers_under_way_are_not_lost_when_one_request_fails(server: Server) -> None:
    together = threading.Barrier(3)

    def meet(handler: Handler, body: dict[str, Any]) -> None:
        together.wait(10)
        (status(400) if body["prompt"] == "1" else answer)(handler, body)

    server.acts = [meet] * 3
    found = []
    with pytest.raises(RequestError, match=r"request 2: .*status 400"):
        for completion in opened(server, batch_size=3).complete(Request(f"{n}") for n in range(10_000)):
            found.append(completion.index)
    asked = {int(body["prompt"]) for body in server.bodies}
    assert {0, 2} <= set(found) == asked - {1} and len(asked) < 10_000


def test_the_cache_answers_without_the_server_and_for_this_endpoint_alone(server: Server, tmp_path: Path) -> None:
    request = Request("abc", Sampling(temperature=1.0, seed=1))
    (first,) = opened(server, cache=tmp_path).complete([request])
    again = opened(server, cache=tmp_path, prices=Prices(1.0, 1.0))
    assert list(again.complete([request])) == [first] and len(server.bodies) == 1
    assert again.cost.new_tokens == 0 and again.cost.money == 0
    for changed in (
        Request("abd", request.sampling),
        Request("abc", Sampling(temperature=1.0, seed=2)),
        Request((Message("user", "abc"),), request.sampling),
    ):
        next(again.complete([changed]))
    next(opened(server, cache=tmp_path, model="other").complete([request]))
    next(opened(server, cache=tmp_path, extra={"a": 1}).complete([request]))
    assert len(server.bodies) == 6
    with Server() as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        next(opened(elsewhere, cache=tmp_path).complete([request]))
        assert len(elsewhere.bodies) == 1
        elsewhere.shutdown()


def test_a_damaged_cache_is_asked_again_and_a_newer_one_left(server: Server, tmp_path: Path) -> None:
    (first,) = opened(server, cache=tmp_path).complete([Request("abc")])
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    content = path.read_bytes()
    for damage in (b"", content[:-20], content.replace(b"cba0", b"cbaX")):
        path.write_bytes(damage)
        assert list(opened(server, cache=tmp_path).complete([Request("abc")])) == [first]
        assert path.read_bytes() == content
    assert len(server.bodies) == 4
    path.write_bytes(content.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(ForeignFileError, match="kept answer of format 2"):
        list(opened(server, cache=tmp_path).complete([Request("abc")]))
    (tmp_path / "file").write_text("")
    server.bodies.clear()
    found = []
    with pytest.raises(ArmillaryError, match="the answer cannot be cached"):
        for completion in opened(server, cache=tmp_path / "file").complete([Request("abc")]):
            found.append(completion)
    assert found == [first]


def test_likelihoods_come_from_an_echoed_prompt(server: Server) -> None:
    backend = opened(server)
    pairs = [Pair("ab", "cd"), Pair("ab ", "e"), Pair("a", "ee")]
    found = backend.loglikelihood(pairs)
    assert [round(likelihood.value, 6) for likelihood in found] == [-1.99, -1.33, -2.02]
    assert [(likelihood.tokens, likelihood.greedy) for likelihood in found] == [(2, True), (2, True), (2, True)]
    (other,) = backend.loglikelihood([Pair("a", "ez")])
    assert not other.greedy
    assert backend.tokenize("é") == [195, 169]
    with pytest.raises(BadRequestError, match="pair 2: the context is empty"):
        backend.loglikelihood([Pair("a", "b"), Pair("", "b")])


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}, {"token_logprobs": "abc", "top_logprobs": 3}],
)
def test_a_server_without_log_probabilities_of_prompts_is_refused(server: Server, logprobs: Any) -> None:
    choice = {"text": "x", "finish_reason": "length", "logprobs": logprobs}
    server.acts = [answer, answer, lambda handler, _: handler.send(200, {"choices": [choice]})]
    with pytest.raises(RequestError, match=r"log probabilities of a prompt .*; use one that does"):
        opened(server).loglikelihood([Pair("ab", "cd")])


def test_a_cut_prompt_is_sent_as_tokens_and_a_cut_chat_is_refused(server: Server, tiny_hf: Path) -> None:
    with contextlib.closing(opened(server, tokenizer=tiny_hf)) as backend:
        tokens = backend.tokenize("The sky is blue")
        (found,) = backend.complete([Request("The sky is blue", last_tokens=2)])
        assert server.bodies[-1]["prompt"] == tokens[-2:] and found.cut == len(tokens) - 2
        with pytest.raises(BadRequestError, match="request 1: chat messages cannot be cut"):
            list(backend.complete([Request((Message("user", "a"),), last_tokens=2)]))


def test_a_server_that_does_not_cut_text_needs_a_tokenizer(server: Server, tiny_hf: Path) -> None:
    server.acts = [status(404), status(404)]
    for ask in (lambda backend: backend.tokenize("a"), lambda backend: backend.loglikelihood([Pair("a", "b")])):
        with pytest.raises(ArmillaryError, match=r"does not tokenize text .*name the tokenizer of the model"):
            ask(opened(server))
    server.bodies.clear()
    backend = opened(server, tokenizer=tiny_hf)
    assert len(backend.loglikelihood([Pair("The sky", " is"), Pair("", "The")])) == 2
    assert (
        sorted(body["prompt"][0] for body in server.bodies)[0] == 1
    )  # an empty context: the first token of a document


@pytest.mark.parametrize("prompt", ["abcdef", (Message("user", "abcdef"),)])
def test_a_streamed_answer_equals_a_whole_one(server: Server, prompt: Any) -> None:
    backend = opened(server)
    drawn = Sampling(n=2, temperature=1.0)
    for sampling in (
        Sampling(),
        drawn,
        Sampling(stop=("cb", "bx")),
        Sampling(max_new_tokens=2),
    ):
        (expected,) = backend.complete([Request(prompt, sampling)])
        for acts in ([], [lambda handler, body: handler.send(200, whole(body))], [status(500)], [drop], [no_json]):
            server.acts = list(acts)
            pieces, stream = [], backend.stream(Request(prompt, sampling))
            while True:
                try:
                    pieces.append(next(stream))
                except StopIteration as end:
                    assert end.value == expected
                    break
            assert "".join(pieces) == expected.choices[0].text


def test_a_stream_that_ends_early_is_no_answer(server: Server) -> None:
    def torn(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(b'data: {"choices": [{"index": 0, "text": "ab"}]}\n\n')
        handler.close_connection = True

    server.acts = [torn]
    pieces = []
    with pytest.raises(ArmillaryError, match="during the answer; try again"):
        for piece in opened(server).stream(Request("abc")):
            pieces.append(piece)
    assert pieces == ["ab"]


def test_a_real_server_gives_what_its_engine_gives(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's server, which the engine of GGUF files holds."""
    pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    local: Any = open_backend(str(tiny_gguf), BackendOptions(threads=1))
    monkeypatch.setenv("OPENAI_API_KEY", local._http.headers["Authorization"].removeprefix("Bearer "))
    remote = open_backend(str(local._http.base_url))
    requests = [
        Request(prompt, Sampling(max_new_tokens=8)) for prompt in ("The sky", "天是", (Message("user", "Hi"),), "1 + 1")
    ]
    assert in_order(remote.complete(requests)) == in_order(local.complete(requests))
    assert remote.tokenize("The sky is") == local.tokenize("The sky is") and remote.context == local.context
    with pytest.raises(ArmillaryError, match="needs the log probabilities of a prompt"):
        remote.loglikelihood([Pair("The sky", " is")])
    local.close()
