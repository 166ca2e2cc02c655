"""Corpora small enough to look through: written by hand as shards, or as text in three languages."""

import hashlib
import json
import random

import numpy as np
import pytest

from armillary.corpus import Corpus, DomainManifest, Manifest, ShardFile
from armillary.corpus.manifest import write_manifest
from armillary.recipe import CorpusSpec, DomainSpec, TokenizerSpec

WORDS = ["the", "model", "reads", "a", "line", "of", "text", "and", "tells", "what", "comes", "next", "loss"]
CHINESE = "浑仪观天象以知四时日月星辰各行其道"


def _shard(path, folder, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ShardFile(path=str(path.relative_to(folder)), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def shards(tmp_path):
    """Make a corpus of given training tokens; token i of domain number d is d * 10,000 + i, which tells both."""

    def make(tokens, examined=()):
        domains = {}
        for d, (name, count) in enumerate(tokens.items()):
            data = (np.arange(count) + 10_000 * d).astype("<u2").tobytes()
            files = [_shard(tmp_path / f"train/{name}.bin", tmp_path, data)] if name not in examined else []
            files += [
                _shard(tmp_path / f"validation/{name}.bin", tmp_path, data),
                _shard(tmp_path / f"validation/{name}.bytes", tmp_path, np.full(count, 2, "<u4").tobytes()),
            ]
            zero = dict.fromkeys([f for f, v in DomainManifest.model_fields.items() if v.annotation is int], 0)
            domains[name] = DomainManifest(
                **zero
                | {
                    "source": "hand",
                    "licence": None,
                    "train": name not in examined,
                    "train_tokens": count if name not in examined else 0,
                    "validation_tokens": count,
                    "files": tuple(files),
                    "problems": (),
                }
            )
        manifest = Manifest(
            hash="",
            dtype="uint16",
            vocab_size=65_536,
            end_of_text="</s>",
            end_of_text_id=0,
            validation_share=0.1,
            validation_chars=1000,
            max_document_chars=1000,
            tokenizer=_shard(tmp_path / "tokenizer.json", tmp_path, b"{}"),
            domains=domains,
        )
        write_manifest(tmp_path, manifest.model_copy(update={"hash": manifest.content_hash()}))
        return Corpus.open(tmp_path)

    return make


@pytest.fixture
def text_sources(tmp_path):
    """A folder with text of three domains: English lines, Chinese files, and a novel to be examined only."""
    rng = random.Random(0)
    folder = tmp_path / "text"
    (folder / "zh").mkdir(parents=True)

    def sentence():
        return " ".join(rng.choices(WORDS, k=12)) + f" {rng.randrange(10**6)}."

    lines = [json.dumps({"text": "\n".join(sentence() for _ in range(rng.randrange(1, 8)))}) for _ in range(200)]
    (folder / "en.jsonl").write_text("\n".join(lines) + "\n")
    for i in range(40):
        text = "".join(rng.choices(CHINESE, k=150))
        (folder / "zh" / f"{i:02d}.txt").write_text(f"{text}\n{i}\n", encoding="utf-8")
    (folder / "novel.md").write_text("\n".join(sentence() for _ in range(60)))
    return folder


@pytest.fixture
def text_spec(text_sources):
    """A recipe's corpus over ``text_sources``."""
    return CorpusSpec(
        domains={
            "en": DomainSpec(source=str(text_sources / "en.jsonl")),
            "中文/zh": DomainSpec(source=str(text_sources / "zh")),
            "novel": DomainSpec(source=str(text_sources / "novel.md"), train=False),
        },
        tokenizer=TokenizerSpec(vocab_size=400),
        validation_share=0.1,
        max_document_chars=300,
    )


@pytest.fixture
def digests():
    """Function from a folder to {path in it: sha256} of all its files."""

    def of(folder):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return of
