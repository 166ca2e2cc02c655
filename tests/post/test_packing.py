"""Every token of every conversation, counted through rendering, packing and batches."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.corpus import Example, SupervisedOrder, write_examples, write_vocabulary
from armillary.post.check import Checked
from armillary.post.formats import Conversation
from armillary.post.template import Renderer, open_renderer

words = st.text(st.characters(codec="utf-8", exclude_characters="<|"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: Any) -> Conversation:
    system = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    turns = [
        {"role": role, "content": draw(words)} for _ in range(draw(st.integers(1, 3))) for role in ("user", "assistant")
    ]
    unanswered = [{"role": "user", "content": draw(words)}] if draw(st.booleans()) else []
    return Conversation((*system, *turns, *unanswered))


@pytest.fixture(scope="module")
def renderer(tiny_hf: Path) -> Renderer:
    return open_renderer(tiny_hf)


@settings(max_examples=30, deadline=None)
@given(
    chats=st.lists(conversations(), min_size=1, max_size=12),
    spare=st.integers(0, 60),
    batch_sequences=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_an_epoch_trains_every_token_of_every_answer_once_and_no_other(
    renderer: Renderer, chats: list[Conversation], spare: int, batch_sequences: int, seed: int
) -> None:
    checked = Checked(renderer, 10**6, 10**6)
    rendered = list(checked.of(chats))
    said = [[turn["content"] + "<|end|>" for turn in chat.messages if turn["role"] == "assistant"] for chat in chats]
    with tempfile.TemporaryDirectory() as folder:
        source = renderer.text.tokenizer.to_str()
        corpus = write_vocabulary(Path(folder), source, "<|end|>")
        examples = [Example(one.tokens, [float(t) for t in one.trained]) for one in rendered]
        written = write_examples(corpus, "chats", examples)
        length = checked.counts.longest - 1 + spare
        order = SupervisedOrder(
            written, seed=seed, context_length=length, batch_sequences=batch_sequences, pad=renderer.end
        )
        rows = order.sequences
        found: Counter[Any] = Counter()
        taken = weight = 0
        for step in range(-(-rows // batch_sequences)):
            batch = order.batch(step)
            assert batch.weights is not None and batch.documents is not None
            assert order.weight(step) == batch.weights.sum() == batch.weight
            for row in range(min(batch_sequences, rows - taken)):
                tokens, weights, documents = batch.tokens[row], batch.weights[row], batch.documents[row]
                weight += int(weights.sum())
                for number in np.unique(documents):
                    (places,) = np.nonzero(documents == number)
                    assert (np.diff(places) == 1).all()
                    if weights[places].any():
                        last = places[np.nonzero(weights[places])[0][-1]] + 1  # the last trained token
                        trained = [0, *weights[places[0] : last].astype(int).tolist()]
                        found[tuple(tokens[places[0] : last + 1].tolist()), tuple(trained)] += 1
            taken += min(batch_sequences, rows - taken)
    wanted = Counter((tuple(one.tokens), tuple(one.trained)) for one in rendered)
    assert found == wanted
    assert weight == checked.counts.trained == sum(sum(one.trained) for one in rendered)
    for one, answers in zip(rendered, said, strict=True):
        assert [text for text, trained in renderer.pieces(one) if trained] == answers
