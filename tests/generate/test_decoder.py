"""Steps with a cache: the logits of the model itself, and the same bits however rows are put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import decoder as decoders
from armillary.generate.decoder import CompiledDecoder, Decoder, Rows, build_decoder
from armillary.generate.eager import EagerDecoder
from armillary.model import Transformer
from armillary.recipe import Experts, ModelShape, RopeScaling

BASE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 40,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 10,
    "d_ff": 36,
    "vocab_size": 77,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"qk_norm": True, "tied_embeddings": True, "head_dim": 16},
    "one head": {"n_heads": 7, "n_kv_heads": 1, "head_dim": 4},
    "yarn": {"rope_scaling": RopeScaling(kind="yarn", factor=4, original_length=16)},
    "llama3": {"rope_scaling": RopeScaling(kind="llama3", factor=8, original_length=16)},
    "relu2": {"feed_forward": "relu2"},
    "latent": {"attention": {"kind": "latent", "kv_rank": 20, "rope_head_dim": 4}, "n_kv_heads": 4},
    "latent queries": {
        "attention": {"kind": "latent", "kv_rank": 12, "q_rank": 24, "rope_head_dim": 4, "value_head_dim": 6},
        "n_kv_heads": 4,
    },
    "experts": {"experts": Experts(count=6, active=2, d_ff=16, balance="none", every=2), "qk_norm": True},
    "biased experts": {
        "experts": Experts(count=5, active=3, d_ff=16, scores="sigmoid", normalise=True, scale=1.5, shared_d_ff=24)
    },
}


def built(name: str) -> Transformer:
    """A model whose layers matter as much as its embedding."""
    model = Transformer(ModelShape(**{**BASE, **SHAPES[name]}))
    model.init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        for number, buffer in enumerate(model.buffers()):
            buffer.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    return model


@pytest.fixture(params=["compiled", "eager"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and decoders._library() is None:
        pytest.skip("no C compiler on this machine")
    return str(request.param)


def made(kind: str, model: Transformer) -> Decoder:
    found = build_decoder(model) if kind == "compiled" else EagerDecoder(model)
    assert isinstance(found, CompiledDecoder if kind == "compiled" else EagerDecoder)
    return found


def ints(numbers: list[int]) -> Any:
    return np.array(numbers, np.int32)


def texts(count: int) -> list[list[int]]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 77, generator.integers(1, 24)).tolist() for _ in range(count)]


def alone(decoder: Decoder, tokens: list[int]) -> Any:
    """Logits of all tokens, one at a time."""
    cache = decoder.new_cache(len(tokens))
    each = [decoder.step(Rows(*map(ints, ([t], [i], [0], [0]))), [cache]).copy() for i, t in enumerate(tokens)]
    return np.concatenate(each)


# In PyTorch the other shapes are the operations of the model itself.
_EAGER = [
    pytest.param("eager", name, marks=() if name in ("qwen3", "biased experts") else pytest.mark.slow)
    for name in SHAPES
]
_COMPILED = [("compiled", name) for name in SHAPES]
_LONG = [name for name in SHAPES if name != "qwen3"]


@pytest.mark.parametrize(("kind", "name"), [*_COMPILED, *_EAGER], indirect=["kind"])
def test_logits_are_those_of_the_model(kind: str, name: str) -> None:
    model = built(name)
    tokens = texts(1)[0] * 4
    with torch.no_grad():
        expected = model(torch.tensor([tokens]))[0].numpy()
    found = alone(made(kind, model), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * float(np.abs(expected).max()))


# Experts in PyTorch take long; their logits are compared above by default.
@pytest.mark.parametrize(
    ("kind", "name"),
    [*_COMPILED, ("eager", "qwen3"), *(pytest.param("eager", name, marks=pytest.mark.slow) for name in _LONG)],
    indirect=["kind"],
)
def test_bits_do_not_depend_on_the_other_rows(kind: str, name: str) -> None:
    decoder = made(kind, built(name))
    given_texts = texts(5)
    expected = [alone(decoder, tokens) for tokens in given_texts]

    @settings(max_examples=5 if kind == "compiled" else 2)
    @given(st.data())
    def each(data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(5)))
        caches = [decoder.new_cache(len(tokens) + data.draw(st.integers(0, 200))) for tokens in given_texts]
        at = [0] * 5
        while left := [i for i in order if at[i] < len(given_texts[i])]:
            chosen = left[: data.draw(st.integers(1, 5))]
            room, rows = decoder.max_rows, list[tuple[int, int]]()
            for i in chosen:
                count = min(data.draw(st.integers(1, 20)), len(given_texts[i]) - at[i], room)
                rows += [(i, at[i] + j) for j in range(count)]
                at[i] += count
                room -= count
            wanted = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True))
            step = Rows(
                ints([given_texts[i][j] for i, j in rows]),
                ints([j for _, j in rows]),
                ints([chosen.index(i) for i, _ in rows]),
                ints(wanted),
            )
            logits = decoder.step(step, [caches[i] for i in chosen])
            assert logits.shape == (len(wanted), 77)
            for line, row in zip(logits, wanted, strict=True):
                i, j = rows[row]
                assert line.tobytes() == expected[i][j].tobytes()

    each()


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    if decoders._library() is None:
        pytest.skip("no C compiler on this machine")
    monkeypatch.setattr(decoders, "THREAD_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    tokens = texts(1)[0]
    for name in ("llama", "biased experts"):
        decoder = build_decoder(built(name))
        expected = alone(decoder, tokens)
        for threads in (2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert alone(decoder, tokens).tobytes() == expected.tobytes()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("name", ["llama", "latent"])
@pytest.mark.parametrize(
    "length", [pytest.param(1, marks=pytest.mark.slow), 7, 8, pytest.param(20, marks=pytest.mark.slow)]
)
def test_a_copied_prefix_is_as_good_as_one_of_its_own(kind: str, name: str, length: int) -> None:
    decoder = made(kind, built(name))
    tokens = (texts(1)[0] * 4)[:32]
    expected = alone(decoder, tokens)
    source = decoder.new_cache(40)
    for i, token in enumerate([*tokens[:length], 5, 6, 7]):
        decoder.step(Rows(*map(ints, ([token], [i], [0], []))), [source])
    cache = decoder.new_cache(300)
    cache.take_prefix(source, length)
    for i in range(length, len(tokens)):
        line = decoder.step(Rows(*map(ints, ([tokens[i]], [i], [0], [0]))), [cache])[0]
        assert line.tobytes() == expected[i].tobytes()


def test_what_one_sequence_left_does_not_reach_another(kind: str) -> None:
    """A sequence whose numbers overflow, then another in the same memory."""
    model = built("llama")
    expected = alone(made(kind, model), [4, 5, 6])
    with torch.no_grad():
        model.embedding.weight[7] = float("nan")  # type: ignore[union-attr]
    decoder = made(kind, model)
    assert np.isnan(alone(decoder, [7] * 9)).all()
    found = alone(decoder, [4, 5, 6])
    assert found[0].tobytes() == expected[0].tobytes()
    both = [decoder.new_cache(3), decoder.new_cache(3)]
    for i in range(3):
        lines = decoder.step(Rows(*map(ints, ([7, 4 + i], [i, i], [0, 1], [0, 1]))), both)
        assert lines[1].tobytes() == expected[i].tobytes()
