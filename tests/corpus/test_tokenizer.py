"""Any text comes back exactly, and the bytes of tokens are the bytes of the text."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from armillary.corpus.tokenizer import Encoder, read_tokenizer_file, train_bpe
from armillary.recipe import UsageError

TEXT = ["the theory of the thing is the theme", "天地玄黄，宇宙洪荒", "def f(x):\n    return x\n"] * 20
TRAINED = train_bpe(TEXT, 300)
any_text = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["<|endoftext|>", "</s>", " ", "\n", "天", "é", "e\u0301", "👩‍🚀", "the "]), max_size=12
    ).map("".join),
)


def words_tokenizer():
    """Not byte-level: whole words, unknown ones lost, accents composed first, and no room for spaces."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "the": 2, "天": 70_000}, "[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@given(any_text)
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips_and_is_spelled_in_bytes(text):
    encoder = Encoder(TRAINED)
    ids, sizes = encoder.encode_with_bytes(text)
    assert ids[-1] == encoder.end_id and encoder.end_id not in ids[:-1]
    decoder = tokenizers.Tokenizer.from_str(TRAINED)
    assert decoder.decode(ids[:-1], skip_special_tokens=False) == text
    assert sizes[-1] == 0 and sizes.sum() == len(text.encode())
    # Exact token by token: the first k tokens spell the first bytes.
    known = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    assert [len(decoder.id_to_token(i)) for i in ids[:-1]] == sizes[:-1].tolist()
    assert all(set(decoder.id_to_token(i)) <= set(known) for i in ids[:-1])
    assert next(encoder.encode([text])) == ids


@given(any_text)
@settings(deadline=None)
def test_bytes_add_up_for_tokenizers_that_are_not_byte_level(text):
    encoder = Encoder(words_tokenizer().to_str())
    ids, sizes = encoder.encode_with_bytes(text)
    assert len(ids) == len(sizes) and sizes[-1] == 0
    assert sizes.sum() == (len(text.encode()) if len(ids) > 1 else 0)


def test_bytes_of_a_word_tokenizer_are_given_to_the_token_they_belong_to():
    ids, sizes = Encoder(words_tokenizer().to_str()).encode_with_bytes("the 天 x")
    assert ids == [2, 70_000, 0, 1]
    assert sizes.tolist() == [4, 4, 1, 0]


def test_vocabulary_and_width():
    encoder = Encoder(TRAINED)
    assert encoder.vocab_size == 300 and encoder.dtype == "uint16"
    wide = Encoder(words_tokenizer().to_str())
    assert wide.vocab_size == 70_001 and wide.dtype == "uint32" and wide.end == "</s>"
    assert tokenizers.Tokenizer.from_str(train_bpe(["ab"], 300)).get_vocab_size() == 257


def test_training_is_deterministic_and_learns_the_text():
    assert train_bpe(iter(TEXT), 300) == TRAINED
    ids = next(Encoder(TRAINED).encode(["the theory of the thing"]))
    assert len(ids) < 12
    assert np.all(np.array(ids) < 300)


def test_truncation_and_padding_of_a_given_tokenizer_are_ignored():
    tokenizer = tokenizers.Tokenizer.from_str(TRAINED)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert next(Encoder(tokenizer.to_str()).encode(["天地玄黄"])) == next(Encoder(TRAINED).encode(["天地玄黄"]))


def test_wrong_tokenizer_files(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokenizer_file(file)
    file.write_text("{}")
    with pytest.raises(UsageError, match="not a Hugging Face tokenizer"):
        read_tokenizer_file(file)
    endless = tokenizers.Tokenizer(models.BPE())
    endless.decoder = decoders.ByteLevel()
    endless.save(str(file))
    with pytest.raises(
        UsageError, match=r"no special token has a known name .* the key tokenizer\.end; it has no special token"
    ):
        read_tokenizer_file(file)


def file_with(path, special=(), ordinary=()):
    """A tokenizer.json with these added tokens."""
    tokenizer = tokenizers.Tokenizer.from_str(TRAINED)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in ordinary])
    tokenizer.save(str(path))
    return path


def test_an_ordinary_token_never_ends_a_text(tmp_path):
    file = file_with(tmp_path / "tokenizer.json", ["<pad>", "<eos>", "<bos>"], ["<s>", "</s>"])
    text, end = read_tokenizer_file(file)
    assert end == "<eos>"
    encoder = Encoder(text, end)
    assert encoder.end_id not in next(encoder.encode(["<s>old</s> new <eos>"]))[:-1]
    with pytest.raises(UsageError, match=r"'</s>' \(tokenizer\.end\) is an ordinary token"):
        read_tokenizer_file(file, "</s>")
    with pytest.raises(UsageError, match=r"'<end>' \(tokenizer\.end\) is not a token"):
        read_tokenizer_file(file, "<end>")


@pytest.mark.parametrize(
    "special",
    ["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|im_end|>", "<|eot_id|>", "[EOS]"],
)
def test_the_only_special_token_with_the_name_of_an_end(tmp_path, special):
    file = file_with(tmp_path / "tokenizer.json", ["<pad>", special, "<s>", "<|start_header_id|>", "<unk>"])
    assert read_tokenizer_file(file)[1] == special


def test_several_ends_are_a_question_and_the_key_or_the_files_beside_answer_it(tmp_path):
    file = file_with(tmp_path / "tokenizer.json", ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], ["</s>"])
    with pytest.raises(
        UsageError, match=r"several .* be the end-of-text token: <\|end_of_text\|>, <\|eot_id\|>; .* tokenizer\.end"
    ):
        read_tokenizer_file(file)
    assert read_tokenizer_file(file, "<|eot_id|>")[1] == "<|eot_id|>"
    ids = {t["content"]: t["id"] for t in json.loads(file.read_text())["added_tokens"]}

    def beside(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return read_tokenizer_file(file)[1]

    assert beside("config.json", {"eos_token_id": ids["<|eot_id|>"]}) == "<|eot_id|>"
    assert beside("generation_config.json", {"eos_token_id": [ids["<|end_of_text|>"]]}) == "<|end_of_text|>"
    assert beside("special_tokens_map.json", {"eos_token": "<|eot_id|>"}) == "<|eot_id|>"
    assert beside("tokenizer_config.json", {"eos_token": {"content": "<|end_of_text|>"}}) == "<|end_of_text|>"
    assert beside("tokenizer_config.json", {"eos_token": "<|eot_id|>"}) == "<|eot_id|>"
    assert read_tokenizer_file(file, "<|end_of_text|>")[1] == "<|end_of_text|>"
    with pytest.raises(UsageError, match=r"'</s>' \(eos_token of tokenizer_config\.json\) is an ordinary token"):
        beside("tokenizer_config.json", {"eos_token": "</s>"})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"tokenizer_config\.json: cannot be read"):
        read_tokenizer_file(file)
