"""Opens finished runs with the native backend: weights and specification of the run, tokenizer of its corpus.

The corpus is found by its hash: next to the store (``corpus/HASH`` in a folder above the run), or in the folder that
the options name. A different tokenizer would mean a different model, so the module never guesses one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from armillary.corpus import Corpus
from armillary.generate.registry import BackendOptions
from armillary.recipe import DamagedFileError, RunSpec, UsageError, read_json

if TYPE_CHECKING:
    from armillary.generate.native import NativeBackend

SPEC, RESULT, WEIGHTS = "spec.json", "result.json", "model.safetensors"
_REMEDY = "restore it from a copy, or train the run again"


def is_run(folder: Path) -> bool:
    """Whether ``folder`` holds a run, finished or not."""
    return (folder / SPEC).is_file() and not (folder / "config.json").exists()


def open_run(folder: Path, options: BackendOptions) -> NativeBackend:
    """The model of a finished run.

    Raises:
        UsageError: the run is not finished, its corpus is not found, the corpus given is a different one, or the
            context exceeds that of the run.
        DamagedFileError: a file of the run is torn, or not the file that the run wrote.
    """
    if not (folder / RESULT).is_file():
        raise UsageError(f"{folder}: this run is not finished (it has no {RESULT}); finish its training first")
    try:
        spec = RunSpec.model_validate(read_json(folder / SPEC, "run specification", _REMEDY))
        recorded = read_json(folder / RESULT, "result", _REMEDY).get("files", {}).get(WEIGHTS, {}).get("sha256")
        with open(folder / WEIGHTS, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (ValidationError, AttributeError) as error:
        raise DamagedFileError(f"{folder}: its {SPEC} or {RESULT} does not belong to a run; {_REMEDY}") from error
    except OSError as error:
        raise DamagedFileError(f"{error.filename or folder}: cannot be read ({error.strerror}); {_REMEDY}") from error
    if recorded not in (None, digest):
        raise DamagedFileError(f"{folder / WEIGHTS}: not the weights that this run wrote; {_REMEDY}")
    corpus = _corpus(folder, spec.corpus, options.tokenizer)
    if options.context is not None and options.context > spec.context_length:
        raise UsageError(f"context {options.context} is more than the {spec.context_length} tokens of run {spec.id}")

    from armillary.generate.native import BATCH_SIZE, NativeBackend, find_device, move
    from armillary.generate.text import ModelText
    from armillary.model import load_weights

    place = find_device(options.device)
    model = load_weights(folder / WEIGHTS, spec.model)
    move(model, place, folder)
    return NativeBackend(
        model,
        ModelText(corpus.tokenizer(), frozenset({corpus.manifest.end_of_text_id})),
        options.context or spec.context_length,
        lambda: {"model": spec.id, "sha256": digest, "run": spec.id, "corpus": spec.corpus},
        options.batch_size or BATCH_SIZE,
    )


def _corpus(folder: Path, wanted: str, given: Path | None) -> Corpus:
    """The corpus of the run."""
    if given is not None:
        place = given.parent if given.is_file() else given
        if not (place / "manifest.json").is_file():
            raise UsageError(
                f"tokenizer {given}: for a run, give the folder of its corpus {wanted}, which has a manifest.json"
            )
        if (corpus := Corpus.open(place)).hash != wanted:
            raise UsageError(f"tokenizer {given}: belongs to corpus {corpus.hash}, but the run was trained on {wanted}")
        return corpus
    for above in folder.resolve().parents:
        place = above / "corpus" / wanted
        if (place / "manifest.json").is_file():
            return Corpus.open(place)
    raise UsageError(
        f"{folder}: the tokenizer of this run is in its corpus {wanted}, and no folder above the run has "
        f"corpus/{wanted}; name the folder of that corpus as the tokenizer (--tokenizer)"
    )
