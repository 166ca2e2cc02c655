"""A conversation: what the model is asked at each turn, and what stays of turns that are cut, too long or refused."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.generate import BackendOptions, Completion, Dialogue, Message, Request, Sampling, open_backend
from armillary.generate.backend import Backend
from armillary.recipe import UsageError

pytest.importorskip("transformers", reason="needs the extra export")
_SAMPLING = Sampling(max_new_tokens=6, temperature=0.8, seed=3)


@pytest.fixture(scope="module")
def backend(tiny_hf: Path) -> Backend:
    return open_backend(str(tiny_hf), BackendOptions(threads=1))


def heard(dialogue: Dialogue, text: str) -> tuple[str, Completion]:
    pieces, shown = dialogue.say(text), ""
    try:
        while True:
            shown += next(pieces)
    except StopIteration as end:
        return shown, end.value


def test_each_turn_is_asked_with_all_before_it(backend: Backend) -> None:
    dialogue = Dialogue(backend, _SAMPLING, system="Be short.")
    asked: list[Message] = [Message("system", "Be short.")]
    for turn, text in enumerate(["The sea?", "天是", "1 + 1"]):
        shown, completion = heard(dialogue, text)
        asked.append(Message("user", text))
        (expected,) = backend.complete([Request(tuple(asked), replace(_SAMPLING, seed=3 + turn))])
        assert completion == expected and shown == expected.choices[0].text
        asked.append(Message("assistant", shown))
    assert dialogue.messages == asked[1:] and dialogue.forgotten == 0
    dialogue.clear()
    assert heard(dialogue, "The sea?")[1].prompt_tokens < completion.prompt_tokens


def test_the_oldest_turns_are_forgotten_where_the_context_ends(backend: Backend) -> None:
    dialogue = Dialogue(backend, _SAMPLING)
    for turn in range(12):
        heard(dialogue, f"{turn} the sky is blue and the sea is wide")
        assert dialogue.messages[-2].content.startswith(f"{turn} ") and dialogue.messages[0].role == "user"
    assert dialogue.forgotten > 0 and len(dialogue.messages) + dialogue.forgotten == 24


def test_what_was_said_before_an_answer_is_stopped_stays(backend: Backend) -> None:
    dialogue = Dialogue(backend, replace(_SAMPLING, max_new_tokens=40))
    with closing(dialogue.say("The sea?")) as pieces:
        first = next(pieces)
    assert dialogue.messages == [Message("user", "The sea?"), Message("assistant", first)]
    heard(dialogue, "And the sky?")
    assert len(dialogue.messages) == 4


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(backend: Backend) -> None:
    dialogue = Dialogue(backend, _SAMPLING)
    heard(dialogue, "The sea?")
    before = list(dialogue.messages)
    for text in ("word " * 500, "half a character \ud800"):
        with pytest.raises(UsageError):
            heard(dialogue, text)
        assert dialogue.messages == before and dialogue.forgotten == 0


@pytest.mark.parametrize("pieces", [0, 2])
def test_ctrl_c_within_an_answer_keeps_what_was_said(backend: Backend, pieces: int) -> None:
    class Interrupted:
        """The backend, interrupted after some pieces of an answer."""

        identity, cost = backend.identity, backend.cost

        def stream(self, request: Request) -> Generator[str, None, Completion]:
            for number in range(pieces):
                yield f"word{number} "
            raise KeyboardInterrupt

    dialogue = Dialogue(Interrupted(), _SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        heard(dialogue, "The sea?")
    kept = [Message("user", "The sea?"), Message("assistant", "word0 word1 ")] if pieces else []
    assert dialogue.messages == kept
    dialogue.backend = backend
    heard(dialogue, "And now?")
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * (2 if pieces else 1)
