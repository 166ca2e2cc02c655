"""Engines in this process: other backends behind the same routes, and steps that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from armillary.generate import BackendOptions, Message, Request, Sampling, open_backend
from armillary.generate.native import NativeBackend
from armillary.recipe import ArmillaryError
from armillary.serve.app import Serving, build_app
from armillary.serve.batching import BatchingEngine
from armillary.serve.borrowing import BorrowingEngine
from armillary.serve.engine import Engine

Result = TypeVar("Result")


def with_client(engine: Engine, act: Callable[[httpx2.AsyncClient], Awaitable[Result]]) -> Result:
    """Run ``act`` with a client of the routes, in this process."""

    async def run() -> Result:
        engine.start(asyncio.get_running_loop())
        app = build_app(Serving(engine, "tiny", "print", None, 0))
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            return await act(client)

    try:
        return asyncio.run(run())
    finally:
        engine.close()


def test_a_step_that_fails_ends_its_requests_and_no_others(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(str(tiny_hf), BackendOptions())
    assert isinstance(backend, NativeBackend)
    step, failures = backend._decoder.step, [RuntimeError("boom"), ArmillaryError("no memory for a step")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return step(*arguments)

    monkeypatch.setattr(backend._decoder, "step", failing)
    engine = BatchingEngine(backend, 4, 4)

    async def act(client: httpx2.AsyncClient) -> None:
        body = {"prompt": "The", "max_tokens": 3, "n": 2}
        for said in ("RuntimeError: boom", "no memory for a step"):
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 500 and answer.json()["error"]["message"] == said
        assert len((await client.post("/v1/completions", json=body)).json()["choices"]) == 2
        assert (engine.running, engine.waiting) == (0, 0)

    with_client(engine, act)


def test_a_model_that_diverged_answers_with_the_reason(tiny_hf: Path) -> None:
    backend = open_backend(str(tiny_hf), BackendOptions())
    assert isinstance(backend, NativeBackend)
    step = backend._decoder.step

    def diverged(*arguments: Any) -> Any:
        return step(*arguments) * float("nan")

    backend._decoder.step = diverged  # type: ignore[method-assign]

    async def act(client: httpx2.AsyncClient) -> None:
        for body in ({"stream": True}, {}, {"echo": True, "logprobs": 1}):
            answer = await client.post("/v1/completions", json={"prompt": "The", "n": 3, **body})
            assert "logits contain nan" in answer.text and '"server_error"' in answer.text
            assert answer.status_code == (200 if body.get("stream") else 500) and "[DONE]" not in answer.text

    with_client(BatchingEngine(backend, 2, 9), act)


@pytest.mark.parametrize("name", ["transformers", "llama.cpp"])
def test_other_backends_answer_as_generate_does(name: str, request: pytest.FixtureRequest) -> None:
    if name == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    model = request.getfixturevalue("tiny_gguf" if name == "llama.cpp" else "tiny_hf")
    backend = open_backend(str(model), BackendOptions(threads=1), name)
    sampling = Sampling(12, 0.8, seed=4, n=2, stop=("=",))
    (text,) = backend.complete([Request("The sky", sampling)])
    (chat,) = backend.complete([Request((Message("user", "The sea?"),), sampling)])

    async def act(client: httpx2.AsyncClient) -> None:
        asked = {"max_tokens": 12, "temperature": 0.8, "seed": 4, "n": 2, "stop": "="}
        found = (await client.post("/v1/completions", json={"prompt": "The sky", **asked})).json()
        assert [(one["text"], one["finish_reason"]) for one in found["choices"]] == [
            (one.text, one.finish) for one in text.choices
        ]
        assert found["usage"]["prompt_tokens"] == text.prompt_tokens
        both = (await client.post("/v1/completions", json={"prompt": ["The sky", "The sky"], **asked})).json()
        assert [one["text"] for one in both["choices"]] == [one.text for one in text.choices] * 2
        messages = [{"role": "user", "content": "The sea?"}]
        said = (await client.post("/v1/chat/completions", json={"messages": messages, **asked})).json()
        assert [one["message"]["content"] for one in said["choices"]] == [one.text for one in chat.choices]
        streamed = await client.post("/v1/completions", json={"prompt": "The sky", **asked, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n") and '"error"' not in streamed.text
        for path, body, param in (
            ("completions", {"prompt": [1, 2]}, "prompt"),
            ("completions", {"prompt": "a", "logprobs": 1}, "logprobs"),
            ("completions", {"prompt": "a", "echo": True}, "echo"),
            ("completions", {"prompt": "word " * 9000}, "prompt"),
            ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
            ("chat/completions", {"messages": messages, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
            (
                "chat/completions",
                {"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]},
                "tools",
            ),
        ):
            refused = await client.post(f"/v1/{path}", json=body)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == param, refused.text

    with_client(BorrowingEngine(backend, name, 1, 8), act)
