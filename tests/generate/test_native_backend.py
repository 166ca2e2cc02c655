"""Our models as a backend: against ``transformers``, bits at any batch size, text at token borders, bad models."""

from __future__ import annotations

import gc
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.generate import (
    BackendOptions,
    BadRequestError,
    Completion,
    Message,
    Pair,
    Request,
    RequestError,
    Sampling,
    open_backend,
)
from armillary.generate.native import NativeBackend
from armillary.recipe import UsageError

transformers = pytest.importorskip("transformers", reason="needs the extra export")

_PROMPTS = [
    "The sky",
    "def add(x",
    "天是",
    "1 + 1 = 2, 12",
    "One, two, three and",
    "\n",
    "s",
    "The sky is blue and the",
]
_CHAT = (Message("system", "Be short."), Message("user", "The sea?"))


def opened(folder: Path, **options: Any) -> NativeBackend:
    found = open_backend(str(folder), BackendOptions(**options))
    assert isinstance(found, NativeBackend)
    return found


@pytest.fixture(scope="module")
def backend(tiny_hf: Path) -> NativeBackend:
    return opened(tiny_hf)


def in_order(completions: Iterator[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.index)


def test_greedy_answers_equal_those_of_transformers(backend: NativeBackend, tiny_hf: Path) -> None:
    prompts = [*_PROMPTS, _CHAT]
    requests = [Request(prompt, Sampling(max_new_tokens=24)) for prompt in prompts]
    theirs = open_backend(str(tiny_hf), BackendOptions(), "transformers")
    assert in_order(backend.complete(requests)) == in_order(theirs.complete(requests))


_FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 4, "head_dim": 12},
    "Qwen3Moe": {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24, "decoder_sparse_step": 2, "norm_topk_prob": True},
}


@pytest.mark.parametrize("family", ["Llama", pytest.param("Qwen3", marks=pytest.mark.slow), "Qwen3Moe"])
def test_token_for_token_as_transformers_generates(family: str, tiny_hf: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    common = {"vocab_size": 384, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    rope = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    config = getattr(transformers, f"{family}Config")(
        **common,
        **_FAMILIES[family],
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
        initializer_range=0.3,
        eos_token_id=0,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(tmp_path)
    shutil.copy(tiny_hf / "tokenizer.json", tmp_path)
    ours = opened(tmp_path)
    for prompt, found in zip(
        _PROMPTS[:4], in_order(ours.complete(Request(p, Sampling(60)) for p in _PROMPTS[:4])), strict=True
    ):
        tokens = torch.tensor([ours.tokenize(prompt)])
        room = min(60, 64 - tokens.shape[1])
        answer = model.generate(tokens, max_new_tokens=room, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
        kept = [token for token in answer.tolist() if token != 0]
        assert found.choices[0].tokens == len(kept)
        assert found.choices[0].text == ours._text.decode(kept)


def test_answers_and_likelihoods_have_the_same_bits_in_any_batch(backend: NativeBackend, tiny_hf: Path) -> None:
    requests = [
        Request(prompt, Sampling(3 + number, heat, 0.9, 40, seed=number % 3, n=1 + number % 3))
        for number, prompt in enumerate(_PROMPTS)
        for heat in (0.0, 1.0, 1.5)
    ]
    pairs = [Pair(a, b) for a in ("The sky is", "The sky ", "1 + 1 =", "", "天") for b in (" blue and", "2", "海是")]
    backends = [opened(tiny_hf, batch_size=size) for size in (1, 7, 32)]
    answers = in_order(backends[0].complete(requests))
    alone = [backends[0].loglikelihood([pair])[0] for pair in pairs]
    assert len({answer.choices[0].text for answer in answers}) > 12 and all(one.value < 0 for one in alone)

    @settings(max_examples=4)
    @given(st.sampled_from(backends), st.permutations(range(len(requests))), st.permutations(range(len(pairs))))
    def each(other: NativeBackend, order: list[int], pair_order: list[int]) -> None:
        found = in_order(other.complete(requests[i] for i in order))
        assert [one.choices for one in found] == [answers[i].choices for i in order]
        assert other.loglikelihood([pairs[i] for i in pair_order]) == [alone[i] for i in pair_order]

    each()


def test_an_answer_depends_on_its_number_and_seed_alone(backend: NativeBackend) -> None:
    def texts(seed: int, n: int) -> list[str]:
        (found,) = backend.complete([Request("The sky", Sampling(12, 1.0, seed=seed, n=n))])
        return [choice.text for choice in found.choices]

    five = texts(1, 5)
    assert texts(1, 2) == five[:2] and len(set(five)) > 2
    assert not set(texts(2, 3)) & set(five)


def test_likelihoods_agree_with_transformers(backend: NativeBackend, tiny_hf: Path) -> None:
    pairs = [Pair(a, b) for a in ("The sky is", "The sky ", "1 + 1 =", "", "天") for b in (" blue and", "2", "海是")]
    theirs = open_backend(str(tiny_hf), BackendOptions(), "transformers").loglikelihood(pairs)
    for one, other in zip(backend.loglikelihood(pairs), theirs, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)


@settings(max_examples=12)
@given(st.integers(0, 30), st.integers(1, 4), st.sampled_from(["The sky", "天是"]))
def test_an_answer_ends_before_the_first_stop_string(backend: NativeBackend, start: int, size: int, text: str) -> None:
    sampling = Sampling(20, 1.0, seed=3)
    (whole,) = backend.complete([Request(text, sampling)])
    answer = whole.choices[0].text
    stop = answer[start : start + size]
    if not stop:
        return
    request = Request(text, Sampling(20, 1.0, seed=3, stop=("~~~~", stop)))
    (cut,) = backend.complete([request])
    assert cut.choices[0].text == answer[: answer.index(stop)] and cut.choices[0].finish == "stop"
    assert streamed(backend, request) == (cut.choices[0].text, cut)


def streamed(backend: NativeBackend, request: Request) -> tuple[str, Completion]:
    pieces, stream = [], backend.stream(request)
    while True:
        try:
            pieces.append(next(stream))
            assert pieces[-1]
        except StopIteration as end:
            return "".join(pieces), end.value


def test_a_stream_says_no_part_of_a_character(tiny_hf: Path, tmp_path: Path) -> None:
    """A model that was made to say a sentence whose characters are cut over tokens."""
    shutil.copytree(tiny_hf, tmp_path / "m")
    backend = opened(tmp_path / "m")
    said = "古龘天𠀀是é"  # of which the tokenizer knows some characters only as bytes
    tokens = backend.tokenize(said)
    assert len(tokens) > len(said)
    from armillary.generate.text import TextStream

    stream, pieces, shown = TextStream(backend._text, ("𠀀",)), [], 0
    for token in tokens:
        stream.add(token)
        pieces.append(stream.text[shown : stream.shown])
        shown = stream.shown
        if stream.stopped:
            break
    assert stream.stopped and "".join(pieces) == stream.finish() == "古龘天"
    assert "\ufffd" not in "".join(pieces)
    free = TextStream(backend._text, ())
    for token in tokens[:-1]:
        free.add(token)
    assert free.text == "古龘天𠀀是" and free.finish() == backend._text.decode(tokens[:-1]) == free.text + "\ufffd"


def test_requests_and_memory_come_and_go(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for less than the batch, fewer sequences run; for less than one, the request is named."""
    roomy, tight = opened(tiny_hf, batch_size=8), opened(tiny_hf, batch_size=8)
    requests = [Request(prompt, Sampling(9, 1.0, n=3)) for prompt in _PROMPTS]
    expected = in_order(roomy.complete(requests))
    one = tight._decoder.cache_bytes(40)
    monkeypatch.setattr(tight._decoder, "free_memory", lambda: 3 * one)
    assert in_order(tight.complete(requests)) == expected
    monkeypatch.setattr(tight._decoder, "free_memory", lambda: one // 100)
    with pytest.raises(RequestError, match="request 1: keys and values of"):
        list(tight.complete(requests))


def test_answers_come_as_they_are_finished(backend: NativeBackend) -> None:
    found = backend.complete([Request("The sky", Sampling(40)), Request("s", Sampling(2))])
    assert [answer.index for answer in found] == [1, 0]


def test_an_answer_ends_at_the_end_of_the_context(tiny_hf: Path) -> None:
    short = opened(tiny_hf, context=8)
    (answer,) = short.complete([Request("The sky", Sampling(50, 1.0, seed=1))])
    assert answer.prompt_tokens + answer.choices[0].tokens == 8 and answer.choices[0].finish == "length"
    with pytest.raises(BadRequestError, match=r"request 2: the prompt has \d+ tokens, but this model takes at most 8"):
        short.complete([Request("a"), Request("word " * 20)])


def test_a_special_token_may_be_a_stop_string(tiny_hf: Path, tmp_path: Path) -> None:
    """A model that says nothing but a special token which is not its end."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_hf, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"][:] = 0
    tensors["lm_head.weight"][1] = tensors["model.norm.weight"] = torch.ones(32)
    tensors["model.embed_tokens.weight"][:] = 1
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    backend = opened(tmp_path / "m")
    said = {stop: next(backend.complete([Request("s", Sampling(5, stop=stop))])) for stop in ((), ("<|start|>",))}
    free, stopped = (one.choices[0] for one in said.values())
    assert (free.text, free.tokens, free.finish) == ("", 5, "length")
    assert (stopped.text, stopped.tokens, stopped.finish) == ("", 0, "stop")


def test_costs_are_counted(tiny_hf: Path) -> None:
    backend = opened(tiny_hf)
    (found,) = backend.complete([Request("The sky", Sampling(5, n=2))])
    assert backend.cost.prompt_tokens == found.prompt_tokens > 0
    assert backend.cost.new_tokens == sum(choice.tokens for choice in found.choices)
    assert backend.cost.seconds > 0 and backend.cost.money is None


def test_the_identity_follows_the_files(tiny_hf: Path, tmp_path: Path) -> None:
    copy = tmp_path / tiny_hf.name
    shutil.copytree(tiny_hf, copy)
    first = opened(copy).identity
    assert first == opened(tiny_hf).identity and first["backend"] == "native"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    assert opened(copy).identity["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "request 1: the prompt is empty"),
        ("a\ud800", "request 1: .*surrogate"),
    ],
)
def test_bad_prompts_are_named(backend: NativeBackend, prompt: str, said: str) -> None:
    with pytest.raises(BadRequestError, match=said):
        backend.complete([Request(prompt)])


def changed(folder: Path, to: Path, name: str, **values: Any) -> Path:
    shutil.copytree(folder, to)
    document = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps(document | values))
    return to


def test_a_chat_needs_a_template_that_takes_it(tiny_hf: Path, tmp_path: Path) -> None:
    plain = changed(tiny_hf, tmp_path / "plain", "tokenizer_config.json", chat_template=None)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(BadRequestError, match="request 2: this model has no chat template"):
        opened(plain).complete([Request("a"), Request(_CHAT)])
    for number, template in enumerate(
        [
            "{{ raise_exception('no system turns') }}",
            "{{ messages[0].role",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ messages['x']['y'] }}",
        ]
    ):
        strict = changed(tiny_hf, tmp_path / str(number), "tokenizer_config.json", chat_template=template)
        (strict / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(BadRequestError, match="request 1: the chat template refuses"):
            opened(strict).complete([Request(_CHAT)])


def test_a_model_smaller_than_its_tokenizer_is_named(tiny_hf: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small = changed(tiny_hf, tmp_path / "m", "config.json", vocab_size=300)
    tensors = load_file(small / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:300].clone()
    save_file(tensors, small / "model.safetensors", {"format": "pt"})
    backend = opened(small)
    with pytest.raises(
        BadRequestError, match=r"request 1: the tokenizer returned token 3\d\d, but the vocabulary has 300 tokens"
    ):
        backend.complete([Request("The sky is blue and the sea is wide")])
    with pytest.raises(BadRequestError, match=r"pair 1: the tokenizer returned token"):
        backend.loglikelihood([Pair("The sky is blue", " and the sea is wide")])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_diverged_are_named(tiny_hf: Path, tmp_path: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_hf, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    backend = opened(tmp_path / "m")
    for heat in (0.0, 1.0):
        with pytest.raises(RequestError, match="request 1: new token 1: the model's logits contain"):
            list(backend.complete([Request("The sky", Sampling(4, heat))]))
    with pytest.raises(RequestError, match="pair 1: the model's logits contain"):
        backend.loglikelihood([Pair("The", " sky")])


def test_bad_folders_are_named(tiny_hf: Path, tmp_path: Path) -> None:
    broken = changed(tiny_hf, tmp_path / "a", "config.json", model_type="mamba")
    with pytest.raises(UsageError, match="model_type is 'mamba'"):
        open_backend(str(broken), BackendOptions(), "native")
    (tmp_path / "b").mkdir()
    shutil.copy(tiny_hf / "config.json", tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        open_backend(str(tmp_path / "b"), BackendOptions(), "native")
    for name, text in (("generation_config.json", "["), ("tokenizer_config.json", "[]")):
        shutil.copytree(tiny_hf, tmp_path / name)
        (tmp_path / name / name).write_text(text)
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            opened(tmp_path / name)
    with pytest.raises(UsageError, match="device 'gpu7' cannot be used"):
        opened(tiny_hf, device="gpu7")
    with pytest.raises(UsageError, match="context 4096 is more than the 128"):
        opened(tiny_hf, context=4096)


def test_ctrl_c_stops_between_steps(backend: NativeBackend) -> None:
    requests = [Request("a", Sampling(90, 1.0, seed=seed)) for seed in range(10_000)]
    expected = list(backend.complete(requests[:1]))
    # Python drops an exception that is raised within a callback of the garbage collector.
    gc.collect()
    gc.disable()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            list(backend.complete(requests))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert list(backend.complete(requests[:1])) == expected


@pytest.mark.slow
def test_smollm2_answers_as_transformers_does(smollm2: Path) -> None:
    backend = opened(smollm2)
    model = transformers.LlamaForCausalLM.from_pretrained(smollm2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    questions = [
        "What is the capital of France?",
        "写一首关于月亮的诗。",
        "Write a Python function that adds two numbers.",
    ]
    prompts: list[Any] = [(Message("user", question),) for question in questions]
    prompts += ["Once upon a time", "The three laws of robotics are", "天"]
    found = in_order(backend.complete(Request(prompt, Sampling(64)) for prompt in prompts))
    for prompt, answer in zip(prompts, found, strict=True):
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")
        else:
            plain = [{"role": "user", "content": prompt[0].content}]
            inputs = tokenizer.apply_chat_template(
                plain, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.choices[0].text == tokenizer.decode(out, skip_special_tokens=True)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_smollm2_has_the_same_bits_in_any_batch(smollm2: Path) -> None:
    requests = [Request(f"{n}. The", Sampling(6, 0.8, 0.95, seed=n)) for n in range(20)]
    pairs = [Pair(f"Question {n}: what is {n} + {n}? Answer:", f" {n + n}") for n in range(20)]
    results = []
    for size in (1, 7, 32):
        backend = opened(smollm2, batch_size=size)
        values = np.array([one.value for one in backend.loglikelihood(pairs)])
        results.append((in_order(backend.complete(requests)), values.tobytes()))
    assert results[0] == results[1] == results[2]
