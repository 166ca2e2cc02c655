"""The real client against a server process: answers, streams, seeds, scores, and what a client does wrong."""

from __future__ import annotations

import concurrent.futures
import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest

from armillary.generate import (
    BackendOptions,
    Message,
    Pair,
    Request,
    Sampling,
    open_backend,
)
from armillary.generate.native import NativeBackend
from server_process import Server

CHAT: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The sea?"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def backend(tiny_tools: Path) -> NativeBackend:
    found = open_backend(str(tiny_tools), BackendOptions())
    assert isinstance(found, NativeBackend)
    return found


def test_the_model_is_listed(client: openai.OpenAI, server: Server) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" == server.facts["model"] and client.models.retrieve("tiny").id == "tiny"
    assert server.facts["context"] == 128 and server.facts["slots"] == 8
    assert server.http.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    with pytest.raises(openai.NotFoundError, match="'giant' is not served here; this server has 'tiny'"):
        client.completions.create(model="giant", prompt="The")


@pytest.mark.parametrize("heat", [0.0, 0.9])
def test_an_answer_is_that_of_generate(client: openai.OpenAI, backend: NativeBackend, heat: float) -> None:
    sampling = Sampling(20, heat, 0.95, 50, ("=",), 7, 3)
    (expected,) = backend.complete([Request("The sky is", sampling)])
    found = client.completions.create(
        model="tiny", prompt="The sky is", max_tokens=20, temperature=heat, top_p=0.95, stop="=", seed=7, n=3,
        extra_body={"top_k": 50},
    )  # fmt: skip
    assert [(one.index, one.text, one.finish_reason) for one in found.choices] == [
        (n, one.text, one.finish) for n, one in enumerate(expected.choices)
    ]
    assert found.usage is not None and found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.completion_tokens == sum(one.tokens for one in expected.choices)


def test_a_chat_is_that_of_generate(client: openai.OpenAI, backend: NativeBackend) -> None:
    messages = (Message("system", "Be short."), Message("user", "The sea?"))
    (expected,) = backend.complete([Request(messages, Sampling(200, 0.7, seed=3))])
    found = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0.7, seed=3)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == (expected.choices[0].text, expected.choices[0].finish)
    assert choice.message.role == "assistant"
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]}]
    again = client.chat.completions.create(model="tiny", messages=[*parts, CHAT[1]], temperature=0.7, seed=3)
    assert again.choices[0].message.content == choice.message.content
    longer = client.chat.completions.create(
        model="tiny", messages=CHAT, extra_body={"chat_template_kwargs": {"brief": True, "messages": []}}
    )
    assert longer.usage is not None and found.usage is not None
    assert longer.usage.prompt_tokens > found.usage.prompt_tokens  # and messages stay what they are


@pytest.mark.parametrize("stop", [[], ["is", "海"], ["e s"]])
def test_streams_say_what_whole_answers_say(client: openai.OpenAI, stop: list[str]) -> None:
    asked: Any = {"model": "tiny", "temperature": 0.8, "seed": 5, "n": 3, "max_tokens": 30, "stop": stop}
    whole = client.completions.create(prompt="The sky", logprobs=2, **asked)
    texts, scores, finishes, usage = {}, {}, {}, None
    for event in client.completions.create(
        prompt="The sky", logprobs=2, stream=True, stream_options={"include_usage": True}, **asked
    ):
        usage = event.usage or usage
        for one in event.choices:
            texts[one.index] = texts.get(one.index, "") + one.text
            scores.setdefault(one.index, []).extend(one.logprobs.token_logprobs)
            finishes[one.index] = one.finish_reason or finishes.get(one.index)
    assert usage == whole.usage
    for one in whole.choices:
        assert (texts[one.index], finishes[one.index]) == (one.text, one.finish_reason)
        assert one.logprobs is not None and scores[one.index] == one.logprobs.token_logprobs
        assert not any(end in one.text for end in stop)

    chat = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=1, **asked)
    said, seen = {}, {}
    for piece in client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=1, stream=True, **asked):
        assert piece.id.startswith("chatcmpl-")
        for part in piece.choices:
            said[part.index] = said.get(part.index, "") + (part.delta.content or "")
            if part.logprobs is not None:
                seen.setdefault(part.index, []).extend(part.logprobs.content)
    for answer in chat.choices:
        assert said[answer.index] == answer.message.content
        assert answer.logprobs is not None and seen[answer.index] == answer.logprobs.content


def test_a_seed_gives_one_answer_alone_and_in_a_crowd(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        prompt = ("The sky", "def add(x", "天是", "One, two, three and " * 4)[seed % 4]
        found = client.completions.create(model="tiny", prompt=prompt, max_tokens=40, temperature=1, seed=seed)
        return found.choices[0].text

    alone = [ask(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(17) as pool:
        crowd = list(pool.map(ask, range(17)))
    assert crowd[:4] == alone and len(set(crowd)) > 12
    free = {client.completions.create(model="tiny", prompt="The sky", max_tokens=20).choices[0].text for _ in range(4)}
    assert len(free) > 1  # without a seed each is drawn anew


def test_scores_are_those_of_the_examination(client: openai.OpenAI, backend: NativeBackend) -> None:
    pair = Pair("The sky is", " blue and the 海")
    tokens = backend.text.encode(pair.context + pair.continuation, True)
    split = len(backend.text.encode(pair.context, True))
    (expected,) = backend.loglikelihood([pair])
    for body in ({"max_tokens": 0}, {"max_tokens": 1}):
        found = client.completions.create(
            model="tiny", prompt=tokens, echo=True, logprobs=3, temperature=0, seed=1, **body
        ).choices[0]
        scores = found.logprobs
        assert scores is not None and scores.token_logprobs is not None and scores.tokens is not None
        assert scores.token_logprobs[0] is None and len(scores.tokens) == len(tokens) + body["max_tokens"]
        assert sum(scores.token_logprobs[split : len(tokens)]) == pytest.approx(expected.value, abs=1e-12)
        assert found.text.startswith(pair.context + pair.continuation)
        assert scores.text_offset is not None and scores.text_offset[0] == 0
        tops = scores.top_logprobs
        assert tops is not None and all(len(top) in (3, 4) for top in tops[1:])
        assert all(value <= 0 and math.isfinite(value) for top in tops[1:] for value in top.values())
    # a token that the model drew has the likelihood that the same text has as a continuation
    drawn = client.completions.create(model="tiny", prompt="The sky is", logprobs=0, max_tokens=1, temperature=0)
    assert drawn.choices[0].logprobs is not None
    (value,) = drawn.choices[0].logprobs.token_logprobs
    (same,) = backend.loglikelihood([Pair("The sky is", drawn.choices[0].text)])
    assert same.tokens != 1 or value == same.value


def test_the_bytes_of_scored_tokens_are_the_text(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, top_logprobs=2, temperature=1.5, seed=1, max_tokens=40
    ).choices[0]
    assert found.logprobs is not None and found.logprobs.content is not None
    joined = b"".join(bytes(one.bytes or []) for one in found.logprobs.content)
    said = joined.decode("utf-8", "replace").replace("<|start|>", "").removesuffix("<|end|>")
    assert said == found.message.content
    assert all(len(one.top_logprobs) == 2 for one in found.logprobs.content)
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in found.logprobs.content)


def test_several_prompts_are_answered_in_order(client: openai.OpenAI) -> None:
    alone = [
        client.completions.create(model="tiny", prompt=prompt, n=2, seed=1, max_tokens=9) for prompt in ("The", "sea")
    ]
    both = client.completions.create(model="tiny", prompt=["The", "sea"], n=2, seed=1, max_tokens=9)
    assert [one.index for one in both.choices] == [0, 1, 2, 3]
    assert [one.text for one in both.choices] == [one.text for found in alone for one in found.choices]
    echoed = client.completions.create(model="tiny", prompt=["The", "sea"], n=2, seed=1, max_tokens=9, echo=True)
    prompts = ["The", "The", "sea", "sea"]
    assert [one.text for one in echoed.choices] == [
        prompt + one.text for prompt, one in zip(prompts, both.choices, strict=True)
    ]


def test_our_own_client_examines_over_the_server(server: Server, backend: NativeBackend) -> None:
    remote = open_backend(server.url, BackendOptions())
    pairs = [Pair("The sky is", " blue and"), Pair("1 + 1 =", " 2"), Pair("def add(x", ", y)")]
    for one, other in zip(remote.loglikelihood(pairs), backend.loglikelihood(pairs), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-12)
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)
    assert remote.context == 128 and remote.tokenize("The sky") == backend.tokenize("The sky")
    request = Request("The sky", Sampling(20, 0.9, seed=2))
    (one,), (other,) = remote.complete([request]), backend.complete([request])
    assert one == other
    remote.close()


WRONG = [
    ({"prompt": ""}, "prompt", "the prompt is empty"),
    ({"prompt": []}, "prompt", "give text, a list of token ids"),
    ({"prompt": ["a", 3]}, "prompt", "prompt 2 is neither text nor"),
    ({"prompt": [5000]}, "prompt", "token 5000 is not in the vocabulary of 363"),
    ({"prompt": "a\ud800"}, "prompt", "lone surrogate"),
    ({"prompt": None}, "prompt", "give text"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": True}, "n", "valid integer"),
    ({"max_tokens": 0}, "max_tokens", "0 needs echo"),
    ({"stop": ["a"] * 99}, "stop", "maximum is 16"),
    ({"stop": [""]}, "stop", "1 to 500 characters"),
    ({"logprobs": 99}, "logprobs", "less than or equal to 20"),
    ({"prompt": ["a"] * 100, "n": 6}, "n", "600 answers in total"),
    ({"prompt": ["The sky"] * 128 + ["a"], "echo": True}, "prompt", "129 prompts"),
    ({"best_of": 4}, "best_of", "not supported by this server"),
    ({"temprature": 1}, "temprature", "unknown field; nearest: temperature"),
    ({"seed": 1.5}, "seed", "valid integer"),
    ({"stream": "yes"}, "stream", "valid boolean"),
]


@pytest.mark.parametrize(("change", "param", "said"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_fields_are_named(server: Server, change: dict[str, Any], param: str, said: str) -> None:
    body = {"model": "tiny", "prompt": "The", **change}
    answer = server.http.post("/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"], error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "'image_url'"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tool_choice": "required"}, "tool_choice", "not in tools"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported by this server"),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_wrong_fields_of_chats_are_named(server: Server, change: dict[str, Any], param: str, said: str) -> None:
    answer = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": CHAT, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"], error


def test_bodies_that_are_none(server: Server, client: openai.OpenAI) -> None:
    head = {"Content-Type": "application/json"}
    for data in (b"{", b"[1]", b"\xff", b"[" * 100_000, b""):
        answer = server.http.post("/v1/completions", content=data, headers=head)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"
    assert server.http.post("/v1/completions", content=b"prompt=a").status_code == 415
    assert server.http.get("/v1/completions").json()["error"]["message"] == "/v1/completions does not support GET"
    assert server.http.get("/v2").json()["error"]["message"] == "there is no /v2"
    large = server.http.post("/v1/completions", content=b" " * (9 << 20), headers=head)
    assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"
    with pytest.raises(openai.BadRequestError, match=r"the prompt has .* tokens, .* at most 128") as error:
        client.completions.create(model="tiny", prompt="The sky " * 200)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "The sky " * 9000}])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    assert server.http.get("/health").json()["status"] == "ok"


def test_an_answer_ends_with_the_context(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="The sky " * 20, max_tokens=999, temperature=0)
    assert found.choices[0].finish_reason in ("length", "stop") and found.usage is not None
    assert found.usage.total_tokens <= 128
