"""An opened corpus: validation windows, and folders that were changed behind its back."""

import json

import numpy as np
import pytest

from armillary.corpus import Corpus
from armillary.recipe import ArmillaryError, ForeignFileError, UsageError, write_sealed


def test_validation_is_a_fixed_fair_sample_of_all_windows(shards):
    corpus = shards({"a": 1001, "b": 1001})
    everything = corpus.validation("a", 10, 1000)
    assert everything.tokens.shape == (100, 11)
    assert everything.tokens.dtype == np.int64
    assert sorted(everything.tokens[:, 0].tolist()) == list(range(0, 1000, 10))
    few = corpus.validation("a", 10, 20)
    np.testing.assert_array_equal(few.tokens, everything.tokens[:20])
    assert few.bytes == 20 * 10 * 2
    # Spread over the text: 20 of its first windows would have mean 95, and all have 495.
    assert 300 < few.tokens[:, 0].mean() < 700
    assert (corpus.validation("b", 10, 20).tokens - 10_000 != few.tokens).any()


def test_natural_mixture_is_the_share_of_tokens(shards):
    corpus = shards({"a": 300, "b": 100, "exam": 500}, examined=["exam"])
    assert corpus.natural_mixture() == {"a": 0.75, "b": 0.25}
    assert corpus.domains == ("a", "b", "exam")
    assert corpus.training_domains == ("a", "b")


def test_domains_that_are_not_there_or_too_short(shards):
    corpus = shards({"a": 300, "short": 5, "exam": 500}, examined=["exam"])
    with pytest.raises(UsageError, match="no training text for 'exam'"):
        corpus.train_tokens("exam")
    with pytest.raises(UsageError, match="no domain 'x'"):
        corpus.validation("x", 8, 1)
    with pytest.raises(UsageError, match="'short': 5 validation tokens"):
        corpus.validation("short", 8, 1)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda p: (p / "manifest.json").unlink(), "not a corpus"),
        (lambda p: (p / "manifest.json").write_text('{"format": 1, '), "cannot be read"),
        (lambda p: (p / "manifest.json").write_text('{"format": 1}'), "hash: is missing"),
        (lambda p: (p / "train/a.bin").write_bytes(b"\0\0"), r"train/a.bin: has 2 bytes, but 600 in the manifest"),
        (lambda p: (p / "validation/a.bytes").unlink(), r"validation/a.bytes: missing"),
    ],
)
def test_a_torn_or_changed_folder_is_not_opened(shards, harm, told):
    path = shards({"a": 300}).path
    harm(path)
    with pytest.raises(ArmillaryError, match=told) as error:
        Corpus.open(path)
    assert error.value.exit_code == 1


def test_a_newer_format_is_refused_and_left(shards):
    file = shards({"a": 300}).path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    write_sealed(file, manifest | {"format": 3, "new": 0})
    newer = file.read_bytes()
    with pytest.raises(ForeignFileError, match="format 3, but this version reads formats up to 2"):
        Corpus.open(file.parent)
    assert file.read_bytes() == newer
