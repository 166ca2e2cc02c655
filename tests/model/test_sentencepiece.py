"""GGUF files with vocabularies of SentencePiece: llama.cpp has the same tokens for random text in many scripts."""

from __future__ import annotations

import importlib.util
import io
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from armillary.generate import BackendOptions, open_backend
from armillary.model import ConvertOptions, Transformer, convert, export_hf, open_model
from armillary.model.weights.convert import _sample
from armillary.model.weights.sentencepiece import of_document, of_folder, of_model
from armillary.model.weights.source import InMemory
from armillary.model.weights.telechat2 import export_telechat2
from armillary.recipe import ModelShape, RopeScaling, UsageError

spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
pytest.importorskip("gguf", reason="needs the extra llamacpp")
WITHOUT_LLAMACPP = importlib.util.find_spec("xllamacpp") is None

TEXT = [
    "The sphere shows where the heavens will be, and the heavens show the sphere.",
    "浑仪是古代观测天体位置的仪器，天是蓝的，海是宽的。星辰与轨道。",
    "def add(x, y):\n    return x + y  # 12 + 34 = 46",
    "Небо синее, море широкое; звезда над морем.",
    "السماء زرقاء والبحر واسع",
    "Der Himmel über der See – größer als 1.234,5 Straßen!",
    "one  two   three    four\t\tfive\n\n\nsix",
] * 40
SIZES = {"n_layers": 1, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96}


def trained(**changed: Any) -> bytes:
    """A model of SentencePiece with byte fallback, as Llama 2 has one."""
    out = io.BytesIO()
    options = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "minloglevel": 2,
    }
    spm.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=out, **{**options, **changed})
    return out.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return trained()


def as_json(data: bytes, metaspace: bool = False) -> dict[str, Any]:
    """The ``tokenizer.json`` of a model of SentencePiece: every way to split a piece, the best pieces first."""
    processor = spm.SentencePieceProcessor(model_proto=data)
    size = processor.get_piece_size()
    pieces = {processor.id_to_piece(i): processor.get_score(i) for i in range(size)}
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    plain = [p for i, p in enumerate(pieces) if not (processor.is_control(i) or processor.is_unknown(i))]
    rows = [
        (-pieces[piece], piece, piece[:at], piece[at:])
        for piece in plain
        if not (piece.startswith("<0x") and piece.endswith(">"))
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    special = [
        {"id": i, "content": processor.id_to_piece(i), "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i in range(3)
    ]  # fmt: skip
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None if metaspace else normalizer,
        "pre_tokenizer": space if metaspace else None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [[left, right] for _, _, left, right in sorted(rows)],
        },
    }


@contextmanager
def in_llamacpp(
    model: bytes | None, document: dict[str, Any] | None, folder: Path, tokenizer_file: Path
) -> Iterator[Any]:
    """llama.cpp with a model whose folder has this ``tokenizer.model`` and ``tokenizer.json``."""
    built = Transformer(ModelShape(**SIZES, vocab_size=604))
    built.init_weights(0)
    export_hf(built, folder / "hf", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "hf" / name).unlink()
    if model is not None:
        (folder / "hf" / "tokenizer.model").write_bytes(model)
    if document is not None:
        (folder / "hf" / "tokenizer.json").write_text(json.dumps(document))
    convert(folder / "hf", folder / "model.gguf", ConvertOptions("gguf"))
    backend = open_backend(str(folder / "model.gguf"), BackendOptions(threads=1))
    try:
        yield backend
    finally:
        backend.close()


def random_texts(count: int) -> list[str]:
    """Cuts of the training text, other scripts, symbols, spaces and control characters in any order."""
    rng = random.Random(5)
    known = "".join(TEXT[:7])
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x900, 0xA00), (0x3040, 0x3100), (0x4E00, 0x9FFF)]
    ranges += [(0xAC00, 0xD7A3), (0x1F300, 0x1F700), (0x2000, 0x2070)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 8)):
            kind = rng.random()
            if kind < 0.45:
                at = rng.randrange(len(known))
                parts.append(known[at : at + rng.randrange(1, 20)])
            elif kind < 0.8:
                first, last = rng.choice(ranges)
                parts.append("".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, 6))))
            else:
                parts.append(
                    rng.choice([" ", "  ", "   ", "     ", "\n", "\n\n", "\t", "▁", "aaaaaaa", "......", "0000"])
                )
        texts.append("".join(parts))
    return texts


@pytest.mark.skipif(WITHOUT_LLAMACPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("beside", [False, True])
def test_llamacpp_has_the_tokens_of_sentencepiece(
    beside: bool, model: bytes, tmp_path: Path, tokenizer_file: Path
) -> None:
    """Also where a ``tokenizer.json`` lies beside the model that llama.cpp would read in another way."""
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    document = {**as_json(model), "normalizer": None, "pre_tokenizer": first} if beside else None
    processor = spm.SentencePieceProcessor(model_proto=model)
    fallback = 0
    with in_llamacpp(model, document, tmp_path, tokenizer_file) as backend:
        for text in random_texts(200):
            expected = processor.encode(text)
            assert backend.tokenize(text) == expected, repr(text)
            fallback += any(processor.is_byte(i) for i in expected)
    assert fallback > 25
    convert(tmp_path / "model.gguf", tmp_path / "back", ConvertOptions("huggingface"))
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for text in random_texts(200):
        expected = processor.encode(text)
        assert back.encode(text).ids == expected, repr(text)
        assert back.decode(expected) == processor.decode(expected), repr(text)


@pytest.mark.skipif(WITHOUT_LLAMACPP, reason="needs the extra llamacpp")
@pytest.mark.parametrize("metaspace", [False, True])
def test_llamacpp_has_the_tokens_of_a_tokenizer_json(
    metaspace: bool, model: bytes, tmp_path: Path, tokenizer_file: Path
) -> None:
    document = as_json(model, metaspace)
    tokenizer = Tokenizer.from_str(json.dumps(document))
    with in_llamacpp(None, document, tmp_path, tokenizer_file) as backend:
        for text in random_texts(200):
            assert backend.tokenize(text) == tokenizer.encode(text).ids, repr(text)


def test_both_forms_say_the_same(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    one = of_model(tmp_path / "tokenizer.model", 604)
    other = of_document(tmp_path, as_json(model), 604)
    assert one.pieces == other.pieces and one.kinds == other.kinds and one.space_prefix and other.space_prefix
    assert one.kinds[-4:] == [5] * 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "unigram"}, "Unigram"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"remove_extra_whitespaces": True}, "repeated spaces"),
    ],
)
def test_a_model_that_llamacpp_would_read_otherwise_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(**changed, hard_vocab_limit=False, vocab_size=500))
    with pytest.raises(UsageError, match=said):
        of_model(path, 604)


def test_a_document_that_llamacpp_would_read_otherwise_is_refused(model: bytes, tmp_path: Path) -> None:
    document = as_json(model)
    pieces = document["model"]["merges"]
    shuffled = [pieces[-1], *pieces[:-1]]
    lacking = {**document["model"]["vocab"]}
    del lacking["<0xE4>"]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    for change, said in (
        ({"model": {**document["model"], "merges": pieces[5:]}}, "its merges lack"),
        ({"model": {**document["model"], "merges": shuffled}}, "not together"),
        ({"model": {**document["model"], "vocab": lacking}}, "lacks the piece <0xE4>"),
        ({"model": {**document["model"], "dropout": 0.1}}, "dropout"),
        ({"normalizer": {"type": "NFKC"}}, "differs from SentencePiece's"),
        ({"normalizer": None, "pre_tokenizer": split}, "differs from SentencePiece's"),
        ({"normalizer": None, "pre_tokenizer": first}, "differs from SentencePiece's"),
    ):
        with pytest.raises(UsageError, match=said):
            of_document(tmp_path / "tokenizer.json", {**document, **change}, 604)
    with pytest.raises(UsageError, match="has token 500, but the model has only 500"):
        of_document(tmp_path / "tokenizer.json", document, 500)


@pytest.mark.parametrize("length", [0, 1, 10, 1000, -3])
def test_a_torn_model_is_named(length: int, model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model[:length])
    with pytest.raises(UsageError, match=r"tokenizer\.model"):
        of_model(path, 604)


ROLES = ["<_start>", "<_end>", "<_pad>", "<_user>", "<_bot>"]
CONFIG = {
    "tokenizer_class": "TelechatTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_telechat2.TelechatTokenizer", None]},
    "add_bos_token": False,
    "bos_token": {"content": "<_start>"},
    "eos_token": "<_end>",
    "added_tokens_decoder": {"602": {"content": "<tool>", "special": False}},
}


@pytest.fixture(scope="module")
def release() -> bytes:
    """A model with control pieces for the roles, as TeleChat2 has them."""
    return trained(control_symbols=ROLES)


def telechat2(folder: Path, data: bytes, config: Mapping[str, Any] = CONFIG) -> Path:
    """A release of TeleChat2 with random weights, whose tokenizer is ``data`` and code."""
    scaling = RopeScaling(kind="telechat2", original_length=64, base_length=64)
    built = Transformer(ModelShape(**SIZES, vocab_size=604, biases=("out", "down"), rope_scaling=scaling))
    built.init_weights(0)
    written = export_telechat2(InMemory(built), torch.float32)
    folder = folder / "release"
    folder.mkdir()
    written.write(folder, written.tensors, lambda size: None)
    (folder / "config.json").write_text(json.dumps(written.documents["config.json"]))
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenization_telechat2.py").write_text("raise SystemExit\n")
    return folder


def test_a_tokenizer_model_alone_serves_every_engine(release: bytes, tmp_path: Path) -> None:
    source = telechat2(tmp_path, release)
    processor = spm.SentencePieceProcessor(model_proto=release)
    backend = open_backend(str(source))
    for text in random_texts(100):
        assert backend.text.encode(text, True) == processor.encode(text), repr(text)  # type: ignore[attr-defined]
    identity = backend.identity
    backend.close()
    (source / "tokenizer.model").write_bytes(trained(control_symbols=[*ROLES, "<_other>"]))
    assert open_backend(str(source)).identity != identity, "the tokenizer is part of the model"
    assert len(_sample(open_model(source))) == 2, "a check reads a text"


def test_transformers_loads_the_tokenizer_of_a_release_without_its_code(release: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = telechat2(tmp_path, release)
    convert(source, tmp_path / "hf", ConvertOptions("huggingface", check=True))
    assert not list((tmp_path / "hf").glob("*.py"))
    processor = spm.SentencePieceProcessor(model_proto=release)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in random_texts(100):
        expected = processor.encode(text)
        assert loaded.encode(text, add_special_tokens=False) == expected, repr(text)
        assert loaded.decode(expected) == processor.decode(expected), repr(text)
    assert loaded.encode("<_user><tool>", add_special_tokens=False) == [processor.piece_to_id("<_user>"), 602]
    assert loaded.eos_token_id == processor.piece_to_id("<_end>")
    convert(source, tmp_path / "again", ConvertOptions("telechat2"))
    for name in ("tokenizer.model", "tokenizer_config.json", "tokenization_telechat2.py"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes(), "as given"


@pytest.mark.skipif(WITHOUT_LLAMACPP, reason="needs the extra llamacpp")
def test_llamacpp_reads_the_tokenizer_of_a_release(release: bytes, tmp_path: Path) -> None:
    source = telechat2(tmp_path, release, {**CONFIG, "add_bos_token": True})
    convert(source, tmp_path / "model.gguf", ConvertOptions("gguf"))
    processor = spm.SentencePieceProcessor(model_proto=release)
    backend = open_backend(str(tmp_path / "model.gguf"), BackendOptions(threads=1))
    for text in random_texts(100):
        assert backend.tokenize(text) == processor.encode(text), repr(text)  # type: ignore[attr-defined]
    backend.close()
    convert(tmp_path / "model.gguf", tmp_path / "back", ConvertOptions("huggingface"))
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    start = processor.piece_to_id("<_start>")
    assert back.encode("one two").ids == [start, *processor.encode("one two")]
    assert back.token_to_id("<tool>") == 602


@pytest.mark.parametrize(
    ("changed", "config", "said"),
    [
        ({"model_type": "unigram", "vocab_size": 370}, CONFIG, "not a byte-pair encoding"),
        ({}, {**CONFIG, "add_eos_token": True}, "add_eos_token"),
        ({}, {**CONFIG, "add_bos_token": True, "bos_token": "<none>"}, "bos_token is '<none>'"),
        ({}, {**CONFIG, "added_tokens_decoder": {"602": "tool"}}, "added tokens cannot be read"),
        ({}, {**CONFIG, "added_tokens_decoder": {"-1": {"content": "tool"}}}, "an added token has the number -1"),
    ],
)
def test_a_tokenizer_model_that_would_be_read_otherwise_is_reported_and_left_as_given(
    changed: dict[str, Any], config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = telechat2(tmp_path, trained(control_symbols=ROLES, **changed), config)
    found = convert(source, tmp_path / "hf", ConvertOptions("huggingface"))
    assert found.no_tokenizer is not None and said in found.no_tokenizer and str(source) in found.no_tokenizer
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    assert (tmp_path / "hf" / "tokenization_telechat2.py").is_file()
    with pytest.raises(UsageError, match=said):
        open_backend(str(source))


def test_added_tokens_extend_a_tokenizer_model(release: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(release)
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 605}')
    found = of_folder(tmp_path)
    assert len(found.pieces) == 606 and found.pieces[605] == "<extra>" and found.kinds[604:] == [5, 4]
    with pytest.raises(UsageError, match="has token 605, but the model has only 604"):
        of_folder(tmp_path, 604)
