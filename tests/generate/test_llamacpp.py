"""GGUF models: against transformers on the same weights, independence of what was asked before, bad files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import BackendOptions, Completion, Message, Pair, Request, Sampling, open_backend
from armillary.recipe import ArmillaryError, UsageError

pytest.importorskip("xllamacpp", reason="needs the extra llamacpp")

_PROMPTS = ["The sky", "def add(x", "天是", "1 + 1", "One, two,", "\n"]


@pytest.fixture(scope="module")
def backend(tiny_gguf: Path) -> Iterator[Any]:
    opened = open_backend(str(tiny_gguf), BackendOptions(threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(tiny_hf: Path) -> tuple[Any, Any]:
    import transformers

    return (
        transformers.AutoModelForCausalLM.from_pretrained(tiny_hf),
        transformers.AutoTokenizer.from_pretrained(tiny_hf),
    )


def in_order(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.index)


def test_greedy_answers_equal_those_of_transformers(backend: Any, reference: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = reference
    chat = (Message("system", "Be short."), Message("user", "The sea?"))
    answers = in_order(backend.complete(Request(prompt, Sampling(max_new_tokens=12)) for prompt in [*_PROMPTS, chat]))
    for prompt, answer in zip([*_PROMPTS, chat], answers, strict=True):
        if isinstance(prompt, str):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
        else:
            messages = [{"role": m.role, "content": m.content} for m in prompt]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert answer.choices[0].text == tokenizer.decode(out, skip_special_tokens=True)
        assert answer.prompt_tokens == ids.shape[1]


def test_likelihoods_equal_those_of_transformers_in_any_order(backend: Any, reference: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = reference
    pairs = [
        Pair(a, b) for a in ("The sky is", "The sky ", "1 + 1 =", "") for b in (" blue and wide", " 2", "海是宽的", "e")
    ]
    found = backend.loglikelihood(pairs)
    for pair, likelihood in zip(pairs, found, strict=True):
        context = tokenizer(pair.context.rstrip()).input_ids
        whole = tokenizer(pair.context + pair.continuation).input_ids
        after = whole[len(context) :]
        context = context or [tokenizer.bos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([context + after])).logits[0].log_softmax(-1)
        rows = logits[len(context) - 1 : -1]
        assert likelihood.value == pytest.approx(sum(float(rows[i, t]) for i, t in enumerate(after)), abs=0.02)
        assert likelihood.tokens == len(after)
        assert likelihood.greedy == (rows.argmax(-1).tolist() == after)
    assert backend.loglikelihood(pairs[::-1])[::-1] == found


def test_a_sampled_answer_depends_on_its_seed_and_number_alone(backend: Any) -> None:
    requests = [
        Request(prompt, Sampling(max_new_tokens=8, temperature=1.0, top_k=50, top_p=0.95, seed=seed, n=2))
        for prompt in _PROMPTS[:3]
        for seed in (1, 2)
    ]
    together = in_order(backend.complete(requests))
    alone = [next(backend.complete([request])) for request in requests[::-1]][::-1]
    assert [answer.choices for answer in together] == [answer.choices for answer in alone]
    texts = [choice.text for answer in together for choice in answer.choices]
    assert len(set(texts)) == len(texts)


def test_requests_at_the_same_time_each_get_their_answer(backend: Any, tiny_gguf: Path) -> None:
    requests = [Request(prompt, Sampling(max_new_tokens=n + 1)) for n, prompt in enumerate(_PROMPTS)]
    several = open_backend(str(tiny_gguf), BackendOptions(threads=1, batch_size=3))
    assert [a.choices for a in in_order(several.complete(requests))] == [
        a.choices for a in in_order(backend.complete(requests))
    ]
    assert several.context == backend.context == 128
    several.close()


def test_stop_strings_length_and_pieces(backend: Any) -> None:
    (whole,) = backend.complete([Request("The sky", Sampling(max_new_tokens=12))])
    text = whole.choices[0].text
    assert whole.choices[0].finish == "length" and whole.choices[0].tokens == 12
    stop = text[4:6]
    (cut,) = backend.complete([Request("The sky", Sampling(max_new_tokens=12, stop=(stop,)))])
    assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish == "stop"
    request, pieces = Request("The sky", Sampling(max_new_tokens=12)), []
    stream = backend.stream(request)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            assert end.value == whole
            break
    assert "".join(pieces) == text and len(pieces) > 1


def test_what_does_not_fit_is_refused_before_anything_is_generated(backend: Any) -> None:
    used = backend.cost.new_tokens
    with pytest.raises(UsageError, match=r"request 2: the prompt has \d+ tokens, but this model takes at most 128"):
        list(backend.complete([Request("a"), Request("word " * 200)]))
    with pytest.raises(UsageError, match="request 1: the prompt is empty"):
        list(backend.complete([Request("")]))
    with pytest.raises(UsageError, match=r"pair 2: \d+ tokens"):
        backend.loglikelihood([Pair("a", "b"), Pair("word " * 200, "c")])
    assert backend.cost.new_tokens == used


def test_a_file_that_is_none_of_llamacpp_is_refused_with_its_name(tiny_gguf: Path, tmp_path: Path) -> None:
    for name, content, message in (
        ("missing.gguf", None, "No such file"),
        ("empty.gguf", b"", "not a GGUF file"),
        ("text.gguf", b"hello world", "not a GGUF file"),
        ("torn.gguf", tiny_gguf.read_bytes()[:5000], "cannot load"),
        ("short.gguf", tiny_gguf.read_bytes()[:-3000], "cannot load"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArmillaryError, match=message) as refused:
            open_backend(str(path))
        assert str(path) in str(refused.value)


def test_the_identity_names_file_and_weights(backend: Any, tiny_gguf: Path) -> None:
    assert backend.identity["backend"] == "llama.cpp" and backend.identity["model"] == tiny_gguf.name
    assert len(backend.identity["sha256"]) == 64
