"""Hugging Face folders: against ``transformers.generate`` itself, batches, seeds, stop strings, bad folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import BackendOptions, Completion, Message, Pair, Request, Sampling, open_backend
from armillary.recipe import ArmillaryError, UsageError

transformers = pytest.importorskip("transformers", reason="needs the extra export")

_PROMPTS = ["The sky", "def add(x", "天是", "1 + 1 = 2, 12", "One, two, three and", "\n", "s"]


def opened(folder: Path, **options: Any) -> Any:
    return open_backend(str(folder), BackendOptions(**options), "transformers")


@pytest.fixture(scope="module")
def backend(tiny_hf: Path) -> Iterator[Any]:
    yield opened(tiny_hf)


def in_order(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.index)


def test_greedy_answers_equal_those_of_generate(backend: Any, tiny_hf: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_hf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_hf)
    chat = (Message("system", "Be short."), Message("user", "The sea?"))
    found = in_order(backend.complete(Request(prompt, Sampling(max_new_tokens=12)) for prompt in [*_PROMPTS, chat]))
    for prompt, answer in zip([*_PROMPTS, chat], found, strict=True):
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")
        else:
            messages = [{"role": m.role, "content": m.content} for m in prompt]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.choices[0].text == tokenizer.decode(out, skip_special_tokens=True)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_answers_do_not_depend_on_the_batch(backend: Any, tiny_hf: Path) -> None:
    requests = [
        Request(prompt, Sampling(max_new_tokens=3 + number, temperature=heat, top_k=40, top_p=0.9, seed=4, n=2))
        for number, prompt in enumerate(_PROMPTS)
        for heat in (0.0, 1.0)
    ]
    alone = in_order(backend.complete(requests))
    for size in (3, 32):
        assert in_order(opened(tiny_hf, batch_size=size).complete(requests[::-1]))[::-1] == [
            Completion(len(requests) - 1 - answer.index, answer.choices, answer.prompt_tokens) for answer in alone
        ]
    assert alone[0].choices[0] == alone[0].choices[1] and alone[1].choices[0] != alone[1].choices[1]


def test_draws_equal_those_of_the_native_backend(backend: Any, tiny_hf: Path) -> None:
    """The two compute the same logits but for their last digits, and draw with one sampler."""
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_k=60, top_p=0.95, seed=9, n=2)
    requests = [Request(prompt, sampling) for prompt in _PROMPTS]
    native = in_order(open_backend(str(tiny_hf)).complete(requests))
    assert [answer.choices for answer in backend.complete(requests)] == [answer.choices for answer in native]


def test_likelihoods_in_batches_equal_those_alone(backend: Any, tiny_hf: Path) -> None:
    pairs = [
        Pair(a, b) for a in ("The sky is", "The sky ", "1 + 1 =", "") for b in (" blue and wide", " 2", "海是", "e")
    ]
    alone = [backend.loglikelihood([pair])[0] for pair in pairs]
    assert backend.loglikelihood(pairs) == alone
    for size in (7, 32):
        for one, other in zip(alone, opened(tiny_hf, batch_size=size).loglikelihood(pairs), strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-6)
            assert (one.tokens, one.greedy) == (other.tokens, other.greedy)


def test_choices_of_one_token_are_read_from_one_pass(tiny_hf: Path) -> None:
    backend, inputs = opened(tiny_hf), list[tuple[int, ...]]()
    backend._model.register_forward_pre_hook(lambda _, given: inputs.append(tuple(given[0].shape)))
    choices = [Pair(context, letter) for context in ("The sky", "1 + 1 =") for letter in "ABCD"]
    found = backend.loglikelihood([*choices, choices[0]])
    assert len(inputs) == 2 and found[8] == found[0] and len({one.value for one in found}) == 8
    assert backend.cost.prompt_tokens == sum(len(backend.tokenize(one.context)) + 1 for one in [*choices, choices[0]])


def test_the_likelihood_of_the_greedy_answer_says_greedy(backend: Any) -> None:
    for prompt in _PROMPTS:
        (answer,) = backend.complete([Request(prompt, Sampling(max_new_tokens=6))])
        if backend.tokenize(prompt + answer.choices[0].text)[: len(backend.tokenize(prompt))] != backend.tokenize(
            prompt
        ):
            continue
        (likely,) = backend.loglikelihood([Pair(prompt, answer.choices[0].text)])
        (other,) = backend.loglikelihood([Pair(prompt, "zzz")])
        if likely.tokens == answer.choices[0].tokens:
            assert likely.greedy
        assert not other.greedy and other.value < 0


@settings(max_examples=6)
@given(st.integers(0, 20), st.integers(1, 3))
def test_an_answer_ends_before_the_first_stop_string(backend: Any, start: int, size: int) -> None:
    (whole,) = backend.complete([Request("The sky", Sampling(max_new_tokens=10))])
    text = whole.choices[0].text
    stop = text[start : start + size]
    if not stop:
        return
    (cut,) = backend.complete([Request("The sky", Sampling(max_new_tokens=10, stop=("~~~~", stop)))])
    assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish == "stop"
    pieces, stream = [], backend.stream(Request("The sky", Sampling(max_new_tokens=10, stop=("~~~~", stop))))
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            assert end.value == cut
            break
    assert "".join(pieces) == cut.choices[0].text


def test_an_answer_ends_at_the_end_of_the_context(backend: Any, tiny_hf: Path) -> None:
    short = opened(tiny_hf, context=8)
    (answer,) = short.complete([Request("The sky", Sampling(max_new_tokens=50))])
    assert answer.prompt_tokens + answer.choices[0].tokens == 8 and answer.choices[0].finish == "length"
    with pytest.raises(UsageError, match=r"request 2: the prompt has \d+ tokens, but this model takes at most 8"):
        list(short.complete([Request("a"), Request("word " * 20)]))
    with pytest.raises(UsageError, match=r"pair 1: \d+ tokens"):
        short.loglikelihood([Pair("word " * 20, "c")])
    assert (short.cost.prompt_tokens, short.cost.new_tokens) == (answer.prompt_tokens, answer.choices[0].tokens)


def test_penalties_of_the_folder_do_not_act(tiny_hf: Path, tmp_path: Path, backend: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps({**config, "repetition_penalty": 5.0, "do_sample": True, "temperature": 9.0, "max_length": 3})
    )
    requests = [Request(prompt, Sampling(max_new_tokens=8)) for prompt in _PROMPTS]
    assert list(opened(folder).complete(requests)) == list(backend.complete(requests))


def test_a_bad_folder_is_refused_with_its_name(tiny_hf: Path, tmp_path: Path) -> None:
    for change, message in (
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "cannot load"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "cannot load"),
    ):
        folder = tmp_path / "model"
        shutil.copytree(tiny_hf, folder)
        change(folder)
        with pytest.raises(ArmillaryError, match=message) as refused:
            opened(folder)
        assert str(folder) in str(refused.value)
        shutil.rmtree(folder)


def test_pickled_weights_are_not_read(tiny_hf: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "model"
    shutil.copytree(tiny_hf, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ArmillaryError, match="safetensors"):
        opened(folder)


def test_options_and_messages_that_do_not_fit_are_refused(tiny_hf: Path, tmp_path: Path, backend: Any) -> None:
    with pytest.raises(UsageError, match="device 'gpu9' cannot be used"):
        opened(tiny_hf, device="gpu9")
    with pytest.raises(UsageError, match="precision must be one of float32"):
        opened(tiny_hf, precision="int4")
    folder = tmp_path / "model"
    shutil.copytree(tiny_hf, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system here') }}")
    with pytest.raises(UsageError, match=r"request 1: the chat template refuses the messages .no system here"):
        list(opened(folder).complete([Request((Message("user", "a"),))]))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="request 1: this model has no chat template"):
        list(opened(folder).complete([Request((Message("user", "a"),))]))
    assert opened(folder).identity["sha256"] != backend.identity["sha256"]
