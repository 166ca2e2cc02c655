"""Folders of finished runs: opened by their path with the tokenizer of their corpus, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armillary.generate import BackendOptions, Pair, Request, Sampling, open_backend
from armillary.recipe import DamagedFileError, RunSpec, UsageError


@pytest.fixture(scope="module")
def finished(make_spec: Callable[..., RunSpec], tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, and its corpus where a store has it."""
    from armillary.train import train_run

    place, spec = tmp_path_factory.mktemp("results"), make_spec()
    folder = place / "store" / "runs" / spec.id
    train_run(spec, tiny_corpus, folder)
    shutil.copytree(tiny_corpus.path, place / "corpus" / spec.corpus)
    return folder


def test_a_run_writes_and_scores_as_its_model_does(finished: Path, tiny_corpus: Any) -> None:
    from armillary.generate.native import NativeBackend
    from armillary.generate.text import ModelText
    from armillary.recipe import RunSpec
    from armillary.train import load_trained

    spec = RunSpec.model_validate_json((finished / "spec.json").read_text())
    backend = open_backend(str(finished))
    text = ModelText(tiny_corpus.tokenizer(), frozenset({tiny_corpus.manifest.end_of_text_id}))
    reference = NativeBackend(load_trained(finished, spec), text, spec.context_length, lambda: {})
    request = Request("sun moon", Sampling(6))
    assert list(backend.complete([request])) == list(reference.complete([request]))
    pairs = [Pair("sun", " moon"), Pair("", "wave")]
    assert backend.loglikelihood(pairs) == reference.loglikelihood(pairs)
    assert backend.context == spec.context_length
    identity = backend.identity
    assert (identity["backend"], identity["run"], identity["model"]) == ("native", spec.id, spec.id)
    assert identity["corpus"] == spec.corpus and len(identity["sha256"]) == 64
    with pytest.raises(UsageError, match="is more than the"):
        open_backend(str(finished), BackendOptions(context=spec.context_length + 1))


def test_the_tokenizer_is_that_of_the_runs_corpus(finished: Path, tiny_corpus: Any, tmp_path: Path) -> None:
    alone = tmp_path / finished.name
    shutil.copytree(finished, alone)
    with pytest.raises(UsageError, match=rf"in its corpus {tiny_corpus.hash}, .*--tokenizer"):
        open_backend(str(alone))
    for given in (tiny_corpus.path, tiny_corpus.tokenizer_file):
        backend = open_backend(str(alone), BackendOptions(tokenizer=given))
        assert backend.identity == open_backend(str(finished)).identity
    with pytest.raises(UsageError, match=r"give the folder of its corpus .*manifest\.json"):
        open_backend(str(alone), BackendOptions(tokenizer=tmp_path))
    spec = json.loads((alone / "spec.json").read_text())
    (alone / "spec.json").write_text(json.dumps({**spec, "corpus": "0" * 16}))
    with pytest.raises(UsageError, match="but the run was trained on 0000"):
        open_backend(str(alone), BackendOptions(tokenizer=tiny_corpus.path))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda folder: (folder / "result.json").unlink(), UsageError, "this run is not finished"),
        (lambda folder: (folder / "model.safetensors").unlink(), DamagedFileError, "No such file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), DamagedFileError, "not the weights"),
        (lambda folder: (folder / "spec.json").write_text("{}"), DamagedFileError, "does not belong to a run"),
        (lambda folder: (folder / "spec.json").write_text("{"), DamagedFileError, "spec.json"),
        (
            lambda folder: (folder / "result.json").write_text('{"files": 3}'),
            DamagedFileError,
            "does not belong to a run",
        ),
    ],
)
def test_a_run_that_is_not_whole_is_refused(
    finished: Path, tmp_path: Path, change: Callable[[Path], Any], error: type[Exception], words: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    change(folder)
    with pytest.raises(error, match=words):
        open_backend(str(folder))


def test_a_published_model_takes_no_other_tokenizer(tiny_hf: Path) -> None:
    with pytest.raises(UsageError, match="has its own tokenizer"):
        open_backend(str(tiny_hf), BackendOptions(tokenizer=tiny_hf))
