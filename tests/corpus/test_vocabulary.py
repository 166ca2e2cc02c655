"""A corpus without text: the same tokenizer and end are the same corpus, and another end is another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armillary.corpus import Corpus, Example, open_examples, verify_corpus, write_examples, write_vocabulary
from armillary.corpus.tokenizer import train_bpe
from armillary.recipe import DamagedFileError, UsageError


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_bpe(["the sea and the sky"] * 20, 280)


def test_the_same_tokenizer_and_end_are_the_same_corpus(tokenizer: str, tmp_path: Path) -> None:
    one, again = (write_vocabulary(tmp_path, tokenizer, "<|endoftext|>") for _ in range(2))
    assert one.hash == again.hash == one.path.name and one.domains == () and Corpus.open(one.path).hash == one.hash
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [one.hash]
    examples = write_examples(one, "some", [Example([1, 2], [0.0, 1.0])])
    assert open_examples(again, examples.hash).tokens.tolist() == [1, 2, one.manifest.end_of_text_id]
    assert verify_corpus(one.path) == []


def test_another_end_is_another_corpus(tokenizer: str, tmp_path: Path) -> None:
    document = json.loads(tokenizer)
    added = document["added_tokens"]
    added.append({**added[0], "id": 5000, "content": "<|im_end|>"})
    both = json.dumps(document)
    assert write_vocabulary(tmp_path, both, "<|im_end|>").hash != write_vocabulary(tmp_path, both, "<|endoftext|>").hash
    with pytest.raises(UsageError, match="'the'"):
        write_vocabulary(tmp_path, both, "the")


def test_a_damaged_one_is_refused(tokenizer: str, tmp_path: Path) -> None:
    corpus = write_vocabulary(tmp_path, tokenizer, "<|endoftext|>")
    (corpus.path / "tokenizer.json").write_text(tokenizer[:-20])
    with pytest.raises(DamagedFileError, match=r"tokenizer.json"):
        write_vocabulary(tmp_path, tokenizer, "<|endoftext|>")
