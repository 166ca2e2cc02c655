"""Tool calls: in texts cut anywhere, and from a model that was taught one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.generate import ChatTemplate
from armillary.serve.tools import Call, ToolReader, check_template, for_template
from server_process import TOOLS, Server, serving

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "海"}}\n</tool_call>'
UNKNOWN = '<tool_call>{"name": "sub", "arguments": {}}</tool_call>'
WRONG = '<tool_call>{"name": "add", "arguments": 3}</tool_call>'
ADD = Call("add", '{"a": 1, "b": "海"}')


def read(*pieces: str) -> tuple[str, list[Call]]:
    reader = ToolReader(["add"])
    parts = [part for piece in pieces for part in reader.feed(piece)]
    text = "".join(part for part in parts if isinstance(part, str)) + reader.finish()
    return text, [part for part in parts if isinstance(part, Call)]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("plain text \n", "plain text \n", []),
        (CALL, "", [ADD]),
        (f"Let me see. \n{CALL}\n{CALL}\n", "Let me see.", [ADD, ADD]),
        (f"{CALL} and then", "and then", [ADD]),
        ("a <tool_call>{broken</tool_call> b", "a <tool_call>{broken</tool_call> b", []),
        (UNKNOWN, UNKNOWN, []),
        (WRONG, WRONG, []),
        ('<tool_call>{"name": "add"}</tool_call>', "", [Call("add", "{}")]),
        ("<tool_call>[1]</tool_call>x", "<tool_call>[1]</tool_call>x", []),
        ("cut <tool_call>{", "cut <tool_call>{", []),
        ("1 <tool 2 < 3", "1 <tool 2 < 3", []),
    ],
)  # fmt: skip
def test_calls_are_taken_out_of_the_text(text: str, said: str, calls: list[Call]) -> None:
    assert read(text) == (said, calls)
    assert read(*text) == (said, calls)


@given(
    st.lists(st.sampled_from([CALL, "a", " ", "\n", "<tool", "_call>", "</tool_call>", "{}"]), max_size=9), st.data()
)
def test_the_cut_into_pieces_changes_nothing(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(text)


def test_templates_without_this_form_are_refused() -> None:
    assert check_template(TOOLS, False) is None
    for source, special, said in (
        (None, False, "no chat template"),
        ("{{ messages }}", False, "does not support tools"),
        ("{{ tools }}[TOOL_CALLS]", False, "a format other than"),
        (TOOLS, True, "special token"),
    ):
        assert said in str(check_template(source, special))
    with pytest.raises(ValueError, match="not a JSON object"):
        for_template([{"function": {"name": "add", "arguments": "[1]"}}])


# ---- a model that calls a tool -----------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
QUESTION = [{"role": "user", "content": "1 + 1?"}]


@pytest.fixture(scope="module")
def caller(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny model, taught to answer one question by a call, and the result by a word."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("caller") / "tiny"
    shutil.copytree(tiny_hf, folder)
    (folder / "chat_template.jinja").write_text(TOOLS, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    template = ChatTemplate(TOOLS, {})
    called = {"function": {"name": "add", "arguments": {"a": 1, "b": "海"}}}
    asked: list[Any] = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [called]}]
    lessons = [
        (template.render(QUESTION, tools=[TOOL]), f"Wait. {CALL}\n{CALL}<|end|>"),
        (template.render([*asked, {"role": "tool", "content": "2"}], tools=[TOOL]), "2.<|end|>"),
    ]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(400):
        total = 0.0
        for prompt, answer in lessons:
            start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
            tokens = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False).input_ids])
            labels = tokens.clone()
            labels[:, :start] = -100
            loss = model(tokens, labels=labels).loss
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        if total < 0.02:
            break
    model.save_pretrained(folder)
    with serving(folder) as server:
        yield server


@pytest.mark.slow
def test_a_model_calls_a_tool_and_reads_its_answer(caller: Server) -> None:
    client = openai.OpenAI(base_url=caller.url, api_key="none", max_retries=0)
    asked: Any = {"model": "tiny", "messages": QUESTION, "temperature": 0, "tools": [TOOL]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Wait.")
    calls: Any = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [(ADD.name, ADD.arguments)] * 2
    assert len({call.id for call in calls}) == 2
    one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0].message
    assert one.tool_calls is not None and len(one.tool_calls) == 1

    text, streamed, finish = "", dict[int, Any](), None
    for event in client.chat.completions.create(**asked, stream=True):
        delta = event.choices[0].delta
        text += delta.content or ""
        finish = event.choices[0].finish_reason or finish
        streamed |= {call.index: (call.function.name, call.function.arguments) for call in delta.tool_calls or ()}
    assert (text, finish) == ("Wait.", "tool_calls") and streamed == {0: (ADD.name, ADD.arguments), 1: streamed[0]}

    answer = {"role": "tool", "tool_call_id": calls[0].id, "content": "2"}
    said = {"role": "assistant", "tool_calls": [calls[0].model_dump()]}
    final = client.chat.completions.create(**{**asked, "messages": [*QUESTION, said, answer]}).choices[0]
    assert (final.message.content, final.finish_reason) == ("2.", "stop")
    refused = client.chat.completions.create(**asked, tool_choice="none").choices[0].message
    assert refused.tool_calls is None
