"""GGUF files: llama.cpp computes the same tokens, quantized weights stay close, and what it lacks is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from armillary.model import ConvertOptions, Transformer, build, convert, export_hf, open_model
from armillary.model.weights import gguf as module
from armillary.model.weights.gguf import pre_tokenizer
from armillary.model.weights.gguf_tokenizer import tokenizer_files
from armillary.recipe import ArmillaryError, DamagedFileError, Experts, ModelShape, UsageError

gguf = pytest.importorskip("gguf", reason="needs the extra llamacpp")
WITHOUT_LLAMACPP = importlib.util.find_spec("xllamacpp") is None

SIZES = {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96, "vocab_size": 320}
LENGTHS = {"kind": "telechat2", "original_length": 128, "base_length": 128}
SHAPES = {
    "llama": {"rope_theta": 5e4},
    "tied": {"tied_embeddings": True},
    "telechat2": {"biases": ("out", "down"), "rope_scaling": LENGTHS},
    "telechat2, other base": {"biases": ("out", "down"), "rope_scaling": {**LENGTHS, "base_length": 64}},
    "all biases": {"biases": ("q", "k", "v", "out", "gate", "up", "down")},
    "linear": {"rope_scaling": {"kind": "linear", "factor": 2.0}},
    "qwen2": {"biases": ("q", "k", "v")},
    "qwen3": {"qk_norm": True, "head_dim": 32},
    "experts": {"qk_norm": True, "experts": Experts(count=4, active=2, d_ff=32, balance="none")},
}


TEXTS = ("It's 2024-11-27, we'll pay 1234567.89!", "\n\n  DON'T\t浑仪 éé  ", " a\r\n b  \n", "x١٢٣ ½ …'LL")


def exported(shape: ModelShape, folder: Path, tokenizer_file: Path) -> tuple[Transformer, Path]:
    model = Transformer(shape)
    model.init_weights(0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=source) + 0.5)
            else:  # large enough that tokens differ, and attention matters
                parameter.mul_(4)
        # never drawn: rows without a token
        model.output_weight[300:] = 0
    export_hf(model, folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=128)
    return model, folder


@pytest.mark.skipif(WITHOUT_LLAMACPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("name", SHAPES)
def test_llamacpp_draws_our_tokens(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    from armillary.generate import BackendOptions, Request, Sampling, open_backend

    model, folder = exported(ModelShape(**{**SIZES, **SHAPES[name]}), tmp_path / "hf", tokenizer_file)
    found = convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf", "float32", check=True))
    assert found.relative is not None and found.relative < 1e-6
    backend: Any = open_backend(str(tmp_path / "model.gguf"), BackendOptions(threads=1))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    try:
        text = "the sphere shows, é 12 345  浑仪\n\n don't 'be"
        assert backend.tokenize(text) == tokenizer.encode(text).ids
        (answer,) = backend.complete([Request("the sphere", Sampling(max_new_tokens=64))])
    finally:
        backend.close()
    tokens = torch.tensor([tokenizer.encode("the sphere").ids])
    begin = tokens.shape[1]
    with torch.no_grad():
        for _ in range(64):
            drawn = model(tokens)[:, -1:].argmax(-1)
            if int(drawn) == 0:
                break
            tokens = torch.cat([tokens, drawn], 1)
    assert tokens.shape[1] - begin > 10, "a test that ends at once would show nothing"
    assert answer.choices[0].text == tokenizer.decode(tokens[0, begin:].tolist())


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_comes_back_bit_for_bit(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    model, folder = exported(ModelShape(**{**SIZES, **SHAPES[name]}), tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf", "float32"))
    convert(tmp_path / "model.gguf", tmp_path / "native", ConvertOptions("native"))
    source = open_model(tmp_path / "native")
    assert source.context_length == 128 and source.special.end == 0
    found = build(source).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    ("dtype", "quantize", "bound"),
    [("bfloat16", None, 0.02), ("float16", None, 0.005), (None, "q8_0", 0.03), (None, "q4_k_m", 0.4)],
)
def test_smaller_weights_stay_close(
    dtype: str | None, quantize: str | None, bound: float, tmp_path: Path, tokenizer_file: Path
) -> None:
    if quantize == "q4_k_m" and WITHOUT_LLAMACPP:
        pytest.skip("needs the extra llamacpp")
    shape = ModelShape(**{**SIZES, "n_layers": 9, "d_model": 256, "head_dim": 64, "d_ff": 512})
    model, folder = exported(shape, tmp_path / "hf", tokenizer_file)
    options = ConvertOptions("gguf", dtype, quantize=quantize)
    convert(folder, tmp_path / "model.gguf", options)
    found = build(open_model(tmp_path / "model.gguf")).state_dict()
    for key, value in model.state_dict().items():
        off = (found[key] - value).norm() / value.norm()
        assert off <= bound / 2 and (off > 0 or value.ndim == 1), key
    if quantize == "q4_k_m":
        kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
        assert kinds["output.weight"] == "Q6_K" and kinds["blk.0.attn_q.weight"] == "Q4_K"
        fine = [i for i in range(9) if kinds[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
        assert fine == [i for i in range(9) if i < 1 or i >= 7 or (i - 1) % 3 == 2]
        assert (tmp_path / "model.gguf").stat().st_size < shape.parameters * 0.8


def test_what_llamacpp_lacks_is_refused_by_name(tmp_path: Path, tokenizer_file: Path) -> None:
    for number, (change, said) in enumerate(
        (
            ({"rope_scaling": {"kind": "yarn", "factor": 2.0, "original_length": 64}}, "yarn"),
            ({"qk_norm": True, "biases": ("q", "k", "v", "out")}, "biases together with qk_norm"),
        )
    ):
        _, folder = exported(ModelShape(**{**SIZES, **change}), tmp_path / f"hf{number}", tokenizer_file)
        with pytest.raises(UsageError, match=said):
            convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    _, folder = exported(ModelShape(**SIZES), tmp_path / "plain", tokenizer_file)
    with pytest.raises(UsageError, match="--quantize q5 with --to gguf"):
        convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf", quantize="q5"))
    document = json.loads((folder / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="Whitespace"):
        convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json: not found"):
        convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    assert not (tmp_path / "model.gguf").exists()


def test_a_torn_file_is_damaged(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = exported(ModelShape(**SIZES), tmp_path / "hf", tokenizer_file)
    path = tmp_path / "model.gguf"
    convert(folder, path, ConvertOptions("gguf"))
    data = path.read_bytes()
    for length in (4, 20, 200, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        with pytest.raises((DamagedFileError, ArmillaryError), match=r"model\.gguf"):
            open_model(path)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], "gpt-2"),
        ([{"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}], None),
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}], "smollm"),
        ([{"type": "Digits", "individual_digits": False}, {"type": "ByteLevel", "use_regex": True}], None),
        ([{"type": "Whitespace"}], None),
        ([], None),
    ],
)
def test_the_splits_that_have_a_name(steps: list[dict[str, Any]], name: str | None) -> None:
    assert pre_tokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) == name


@pytest.mark.skipif(WITHOUT_LLAMACPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("split", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_llamacpp_has_the_tokens_of_every_split(split: str, tmp_path: Path, tokenizer_file: Path) -> None:
    from armillary.generate import BackendOptions, open_backend

    _, folder = exported(ModelShape(**{**SIZES, "vocab_size": 400}), tmp_path / "hf", tokenizer_file)
    patterns = {"llama-bpe": module._LLAMA3, "qwen2": module._QWEN2}
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    first = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(split)
    if first is None:
        first = [pre_tokenizers.Split(Regex(patterns[split]), "isolated")]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt-2", "smollm"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, plain])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=["<|end|>", "<|user|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["It's 2024-11-27, we'll pay 1234567.89!\n\n  DON'T\t浑仪 éé  " * 30], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    backend: Any = open_backend(str(tmp_path / "model.gguf"), BackendOptions(threads=1))
    try:
        for text in TEXTS:
            assert backend.tokenize(text) == tokenizer.encode(text).ids, text
    finally:
        backend.close()
    (tmp_path / "tokenizer.json").write_text("{}")  # of another model, beside the file
    found = convert(tmp_path / "model.gguf", tmp_path / "back", ConvertOptions("huggingface", check=True))
    assert found.no_tokenizer is None and "tokenizer.json" in found.tokenizer_files
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for text in TEXTS:
        assert back.encode(text).ids == tokenizer.encode(text).ids, text
        assert back.decode(back.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
    assert back.token_to_id("<|user|>") == 1 and back.decode([1]) == ""


def test_a_tokenizer_that_is_not_read_is_reported(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = exported(ModelShape(**SIZES), tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    fields = {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()
        if name.startswith("tokenizer.")
    }
    path = tmp_path / "model.gguf"
    assert "tokenizer.json" in tokenizer_files(path, fields, module.SPLITS)
    for change, words in (
        ({"ggml.pre": "tekken"}, "splits text as 'tekken'; supported are gpt-2, smollm, llama-bpe, qwen2"),
        ({"ggml.model": "bert"}, "of the kind 'bert'"),
        ({"ggml.model": None}, "of the kind None"),
    ):
        with pytest.raises(UsageError, match=words):
            tokenizer_files(path, {**fields, **change}, module.SPLITS)
    tokens = fields["ggml.tokens"]
    torn: tuple[dict[str, Any], ...] = (
        {"ggml.tokens": tokens[:-1]},
        {"ggml.tokens": [*tokens[:-1], tokens[5]], "ggml.token_type": [1] * len(tokens)},
        {"ggml.merges": ["a b c"]},
        {"ggml.merges": ["nowhere known"]},
        {"ggml.eos_token_id": len(tokens)},
        {"ggml.token_type": "xyz"},
    )
    for change in torn:
        with pytest.raises(DamagedFileError, match="its tokenizer cannot be read"):
            tokenizer_files(path, {**fields, **change}, module.SPLITS)


def test_a_conversion_without_a_tokenizer_says_so(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = exported(ModelShape(**SIZES), tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    monkeypatch.setattr(module, "SPLITS", {})
    found = convert(tmp_path / "model.gguf", tmp_path / "back", ConvertOptions("huggingface"))
    assert found.no_tokenizer is not None and "splits text as" in found.no_tokenizer
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def test_the_chat_template_comes_back(tmp_path: Path, tokenizer_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, folder = exported(ModelShape(**SIZES), tmp_path / "hf", tokenizer_file)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    convert(folder, tmp_path / "model.gguf", ConvertOptions("gguf"))
    convert(tmp_path / "model.gguf", tmp_path / "back", ConvertOptions("huggingface"))
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"
    assert (
        back.eos_token == "<|end|>"
        and back("浑仪 12").input_ids == Tokenizer.from_file(str(tokenizer_file)).encode("浑仪 12").ids
    )
