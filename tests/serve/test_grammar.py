"""Answers that must be JSON of a schema, and forced tool calls, from a random model that would write neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from armillary.generate import Sampling
from armillary.generate.sampling import Sampler
from server_process import TOOLS, Server, serving

pytest.importorskip("llguidance", reason="needs the extra serve")

SCHEMA = {
    "type": "object",
    "properties": {"sky": {"enum": ["blue", "浑仪"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sky", "n"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA, "strict": True}}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
LOOK: Any = {"type": "function", "function": {"name": "look"}}
ASKED: Any = {"model": "tiny", "messages": [{"role": "user", "content": "The sky?"}]}


@pytest.fixture(scope="module")
def roomy(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny model with a template for tools and room for them."""
    folder = tmp_path_factory.mktemp("roomy") / "tiny"
    shutil.copytree(tiny_hf, folder)
    (folder / "chat_template.jinja").write_text(TOOLS, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(roomy: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=roomy.url, api_key="none", max_retries=0)


def checked(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text or "")
    assert list(found) == ["sky", "n"] and found["sky"] in ("blue", "浑仪") and 0 <= found["n"] <= 99
    return found


def test_every_answer_is_json_of_the_schema(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, response_format=FORM, n=8, seed=1)
    assert len({json.dumps(checked(choice.message.content)) for choice in whole.choices}) > 2
    assert {choice.finish_reason for choice in whole.choices} == {"stop"}
    text = ""
    for event in client.chat.completions.create(**ASKED, response_format=FORM, seed=1, stream=True):
        text += event.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    plain = client.completions.create(
        model="tiny", prompt="The", max_tokens=99, seed=3, extra_body={"response_format": FORM}
    )
    checked(plain.choices[0].text)


def test_a_grammar_changes_no_other_answer(client: openai.OpenAI) -> None:
    def free(seed: int) -> str | None:
        return client.chat.completions.create(**ASKED, max_tokens=30, seed=seed).choices[0].message.content

    def guided(seed: int) -> str | None:
        made = client.chat.completions.create(**ASKED, response_format=FORM, seed=seed)
        return made.choices[0].message.content

    alone = [(free(seed), guided(seed)) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(zip(pool.map(free, range(4)), pool.map(guided, range(4)), strict=True))
    assert together == alone


def test_any_object_and_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(**ASKED, response_format={"type": "json_object"}, max_tokens=12, n=6, seed=2)
    for choice in made.choices:
        text = choice.message.content or ""
        assert text.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
    assert "length" in {choice.finish_reason for choice in made.choices}
    scored = client.chat.completions.create(
        **ASKED, response_format=FORM, logprobs=True, top_logprobs=2, temperature=0
    ).choices[0]
    assert scored.logprobs is not None and scored.logprobs.content is not None
    assert any(one.logprob < one.top_logprobs[0].logprob for one in scored.logprobs.content), "scores are the model's"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_is_forced(choice: Any, client: openai.OpenAI) -> None:
    for seed in range(3):
        one = client.chat.completions.create(
            **ASKED, tools=[ADD, LOOK], tool_choice=choice, seed=seed, max_tokens=300
        ).choices[0]
        if one.finish_reason == "length":  # of `look`, which takes any object
            continue
        (call,) = one.message.tool_calls or ()
        assert one.finish_reason == "tool_calls" and one.message.content is None
        assert call.function.name in ("add", "look") if choice == "required" else call.function.name == "add"  # type: ignore[union-attr]
        if call.function.name == "add":  # type: ignore[union-attr]
            checked(call.function.arguments)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {**FORM, "json_schema": {"schema": {"not": {}}}}}, "response_format", "Unimplemented"),
        ({"response_format": {**FORM, "json_schema": {"schema": {"$ref": "#/no"}}}}, "response_format", "/no"),
        ({"response_format": {**FORM, "json_schema": {"schema": False}}}, "response_format.json_schema.schema", "dict"),
        ({"response_format": FORM, "tools": [ADD]}, "response_format", "leave out tools"),
        ({"response_format": FORM, "tools": [ADD], "tool_choice": "required"}, "tool_choice", "must be text"),
        ({"tool_choice": "required"}, "tool_choice", "not in tools"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "go"}}}, "tool_choice", "not in"),
        ({"tools": [ADD], "tool_choice": "always"}, "tool_choice", "give auto, none, required"),
        ({"tools": [{**ADD, "function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"},
         "tool_choice", "Unimplemented"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_followed_is_named(roomy: Server, change: dict[str, Any], param: str, said: str) -> None:
    answer = roomy.http.post("/v1/chat/completions", json={**ASKED, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"], error


@pytest.mark.slow
def test_an_engine_without_grammars_says_so(tiny_hf: Path) -> None:
    pytest.importorskip("transformers")
    with serving(tiny_hf, "--backend", "transformers", "--name", "tiny") as server:
        answer = server.http.post("/v1/chat/completions", json={**ASKED, "response_format": FORM})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "response_format" and "transformers" in error["message"]


def test_a_token_of_weight_zero_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rounding puts the random point at the very end."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1.0))
    logits = np.array([-np.inf, 1.0, 0.3, -np.inf, 0.1, -np.inf], np.float32)
    assert Sampler(Sampling(1, 1.0, seed=1), 0).draw(logits) == 4
    assert Sampler(Sampling(1, 1.0, top_k=5, seed=1), 0).draw(logits) == 4
