"""Where the context of a model ends, for each engine that runs it here: the same requests fit, the same are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armillary.generate import BackendOptions, BadRequestError, Pair, Request, Sampling, open_backend

_CONTEXT = 16


@pytest.fixture(scope="module", params=["native", "transformers", "llama.cpp"])
def backend(request: pytest.FixtureRequest, tiny_hf: Path, tiny_gguf: Path) -> Any:
    if request.param == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")
    target = tiny_gguf if request.param == "llama.cpp" else tiny_hf
    return open_backend(str(target), BackendOptions(context=_CONTEXT, threads=1), request.param)


def text(backend: Any, tokens: int) -> str:
    """A text of this many tokens."""
    found = "a" * tokens
    assert len(backend.tokenize(found)) == tokens
    return found


def test_an_answer_ends_at_the_end_of_the_context(backend: Any) -> None:
    sampling = Sampling(50, temperature=1.0, seed=2)
    (found,) = backend.complete([Request(text(backend, _CONTEXT - 3), sampling)])
    assert found.prompt_tokens == _CONTEXT - 3
    assert found.choices[0].tokens == 3 and found.choices[0].finish == "length"
    with pytest.raises(BadRequestError, match=r"^request 2: the prompt has 16 tokens, but this model takes at most 16"):
        list(backend.complete([Request("a"), Request(text(backend, _CONTEXT))]))


def test_a_pair_that_does_not_fit_is_refused_and_not_cut(backend: Any) -> None:
    fits = [Pair("a", text(backend, _CONTEXT)), Pair(text(backend, _CONTEXT), "a"), Pair("", text(backend, _CONTEXT))]
    assert [one.tokens for one in backend.loglikelihood(fits)] == [_CONTEXT, 1, _CONTEXT]
    for pair in (
        Pair("aa", text(backend, _CONTEXT)),
        Pair(text(backend, _CONTEXT), "aa"),
        Pair("", text(backend, _CONTEXT + 1)),
    ):
        with pytest.raises(BadRequestError, match=r"^pair 2: 18 tokens, but this model takes at most 17"):
            backend.loglikelihood([Pair("a", "b"), pair])


def test_a_continuation_without_tokens_is_refused(backend: Any) -> None:
    for pair in (Pair("a", ""), Pair("", "")):
        with pytest.raises(BadRequestError, match=r"^pair 2: the continuation '' has no tokens of its own"):
            backend.loglikelihood([Pair("a", "b"), pair])


def test_the_last_tokens_alone_are_read_where_that_is_asked(backend: Any) -> None:
    long, sampling = "\n" + text(backend, 2 * _CONTEXT), Sampling(4)
    total = len(backend.tokenize(long))
    cut, short = sorted(
        backend.complete([Request(long, sampling, 9), Request(text(backend, 9), sampling, 99)]),
        key=lambda one: one.index,
    )
    assert cut.choices == short.choices and cut.prompt_tokens == short.prompt_tokens == 9
    assert (cut.cut, short.cut) == (total - 9, 0)
    found, wanted = backend.loglikelihood([Pair(long, "1", 10), Pair(text(backend, 9), "1")])
    assert found.value == pytest.approx(wanted.value, rel=1e-6)
    assert (found.tokens, found.greedy) == (wanted.tokens, wanted.greedy)
    assert wanted.cut == 0 and found.cut == total + 1 - 10
    with pytest.raises(BadRequestError, match=r"^request 1: the prompt has 16 tokens, but this model takes at most 16"):
        list(backend.complete([Request(long, sampling, _CONTEXT)]))
    with pytest.raises(BadRequestError, match=r"^pair 1: 18 tokens"):
        backend.loglikelihood([Pair(long, "a", _CONTEXT + 2)])
    with pytest.raises(BadRequestError, match="leaves no context before"):
        backend.loglikelihood([Pair(long, "1", 1)])
