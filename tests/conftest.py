"""What several rooms' tests share: a corpus so small that a training step takes milliseconds, and runs over it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from armillary.recipe import (
    CorpusSpec,
    DomainSpec,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    RunSpec,
    Schedule,
    TokenizerSpec,
    Validation,
)

# How long an example takes says something of the machine only. The default tests draw the same examples each time, so
# that a commit passes or fails as a whole; `make test-all` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("ARMILLARY_EXAMPLES", "same"))

# Ranks, and runs that are killed, fork from one server for each process of pytest. It imports once what they all need;
# the first optimizer of a process imports torch._dynamo.
multiprocessing.set_forkserver_preload(
    ["armillary.launch.ranks.large", "torch.distributed.fsdp", "torch._dynamo", "pytest", "hypothesis"]
)

# Domains of their own words, and one that is only examined and mixes the words of two of them: what is trained on
# decides what is learned.
_WORDS = {
    "sky": ["sun", "moon", "star", "orbit", "sphere", "ring", "pole", "zenith", "dawn", "comet"],
    "sea": ["wave", "tide", "reef", "foam", "gull", "salt", "harbour", "keel", "swell", "brine"],
    "code": ["def", "return", "if", "else", "for", "in", "while", "x", "=", "y", "+", "z", "*", "(", ")", ":"],
}
_EXAMINED = ("sky", "sea")


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text file for each domain: ``sky``, ``sea``, ``code``, and ``voyage``, which is for examination only."""
    rng = random.Random(7)
    folder = tmp_path_factory.mktemp("texts")
    words = {**_WORDS, "voyage": [word for name in _EXAMINED for word in _WORDS[name]]}
    paths = {}
    for number, (name, vocabulary) in enumerate(words.items()):
        lines = []
        for _ in range(700 + 200 * number):
            # a chain over the words, so that there is something to predict beyond their frequencies
            at = rng.randrange(len(vocabulary))
            line = []
            for _ in range(rng.randrange(5, 14)):
                line.append(vocabulary[at])
                at = (at + rng.choice((1, 1, 1, 2, 5))) % len(vocabulary)
            lines.append(" ".join(line) + f" {rng.randrange(1000)}.")
        paths[name] = folder / f"{name}.txt"
        # documents are cut at line ends, so that there are many for validation
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


@pytest.fixture(scope="session")
def tiny_corpus_spec(tiny_texts: dict[str, Path]) -> CorpusSpec:
    """A recipe's corpus over ``tiny_texts``, with a vocabulary of 300."""
    return CorpusSpec(
        domains={name: DomainSpec(source=str(path), train=name != "voyage") for name, path in tiny_texts.items()},
        tokenizer=TokenizerSpec(vocab_size=300),
        validation_share=0.1,
        max_document_chars=200,
    )


@pytest.fixture(scope="session")
def tiny_corpus(tiny_corpus_spec: CorpusSpec, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The corpus built and opened."""
    from armillary.corpus import build_corpus  # here, so that rooms without torch need not load what is behind it

    return build_corpus(tiny_corpus_spec, tmp_path_factory.mktemp("corpus"), workers=1)


@pytest.fixture(scope="session")
def outcome() -> Callable[[Path], dict[str, Any]]:
    """What a finished run's folder holds, apart from the time it took: to be equal bit for bit."""
    import pyarrow.parquet as pq

    from armillary.recipe import read_result

    def of(folder: Path) -> dict[str, Any]:
        result = read_result(folder)
        assert result is not None
        numbers = asdict(result)
        del numbers["wall_s"]
        metrics = pq.read_table(folder / "metrics.parquet")
        return {
            "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "columns": metrics.column_names,
            "metrics": metrics.to_pylist(),
            "result": numbers,
        }

    return of


@pytest.fixture(scope="session")
def undisturbed(
    tiny_corpus: Any, outcome: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[RunSpec], dict[str, Any]]:
    """The outcome of a run that nothing happened to, on one thread; each specification is trained once."""
    import torch

    from armillary.train import train_run

    torch.set_num_threads(1)
    known: dict[str, dict[str, Any]] = {}

    def of(spec: RunSpec) -> dict[str, Any]:
        if spec.id not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / spec.id
            train_run(spec, tiny_corpus, folder)
            known[spec.id] = outcome(folder)
        return known[spec.id]

    return of


@pytest.fixture(scope="session")
def make_spec(tiny_corpus: Any) -> Callable[..., RunSpec]:
    """Make a run of 12 steps over ``tiny_corpus``, validated every 5; keywords replace fields."""

    def make(**changes: Any) -> RunSpec:
        fields = {
            "corpus": tiny_corpus.hash,
            "model": ModelShape(
                n_layers=1,
                d_model=16,
                n_heads=2,
                n_kv_heads=1,
                head_dim=16,
                d_ff=32,
                vocab_size=tiny_corpus.vocab_size,
            ),
            "context_length": 16,
            "batch_sequences": 4,
            "steps": 12,
            "mixture": (MixturePhase(start_step=0, weights={"sky": 0.5, "sea": 0.2, "code": 0.3}),),
            "schedule": Schedule(warmup_steps=2, decay_steps=4),
            "optimizer": OptimizerSpec(lr=1e-2),
            "seed": 3,
            "validation": Validation(every=5, windows=4),
        }
        return RunSpec(**{**fields, **changes})

    return make


@pytest.fixture
def quick_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixture study with a plain law instead of the mixture law, which takes seconds to fit."""
    import fakes
    from armillary.study import mixture

    monkeypatch.setattr(mixture, "MixtureLaw", fakes.QuickLaw)
    monkeypatch.setattr(mixture, "optimise_mixture", fakes.quick_optima)
