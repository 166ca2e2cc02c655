"""Checks whether models can be merged: same kind of folder, architecture, shapes, tokenizer and origin.

The average of two networks is useful only if both descend from the same weights: independently trained networks have
their hidden units in different orders. Not every folder has its lineage, so descent is measured by the correlation of
a model's matrices with the base's. It is above 0.9 after fine-tuning and 0 for independently trained models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from armillary.files import file_sha256
from armillary.model import read_shape
from armillary.post.merge.parents import Parent
from armillary.post.merge.tensors import FLOATS
from armillary.recipe import UsageError, read_json

# A model below this median correlation does not descend from the base. Long further training leaves at least 0.5.
LEAST_CORRELATION = 0.2
_SAMPLED_TENSORS, _SAMPLED_NUMBERS = 16, 1 << 16

# Keys of a configuration that do not change what the weights compute.
_FREE = {
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "initializer_range",
    "attention_dropout",
    "pretraining_tp",
}
_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "qwen.tiktoken", "tokenizer.tiktoken")
_REMEDY = "fetch the folder again"


def check_agreement(base: Parent, models: Sequence[Parent]) -> list[str]:
    """Refuse models that cannot be merged over ``base``, and return notes on the others.

    Raises:
        UsageError: two models differ; the message says how.
    """
    if not models:
        raise UsageError("no model to merge; give one or more model folders after the base")
    for model in models:
        for check in (_kinds, _architecture, _tensors, _tokenizers, _origin):
            check(base, model)
    return _notes(models)


def _kinds(base: Parent, model: Parent) -> None:
    if base.kind != model.kind:
        names = {"folder": "a Hugging Face folder", "run": "a run's own weights"}
        raise UsageError(
            f"{model.folder} is {names[model.kind]} and {base.folder} is {names[base.kind]}; publish the run, and "
            "merge folders of one kind"
        )


def _architecture(base: Parent, model: Parent) -> None:
    if base.kind == "run":
        _refuse_fields(base, model, base.config["model"], model.config["model"])
        return
    for key in ("model_type", "architectures"):
        if base.config.get(key) != model.config.get(key):
            raise UsageError(
                f"the architectures differ: {key} is {model.config.get(key)!r} in {model.folder} and "
                f"{base.config.get(key)!r} in {base.folder}"
            )
    try:
        shapes = [read_shape(parent.folder).model_dump(mode="json") for parent in (base, model)]
    except UsageError:  # our transformer does not support the model: compare the keys of the configuration
        shapes = [{key: value for key, value in p.config.items() if key not in _FREE} for p in (base, model)]
    _refuse_fields(base, model, *shapes)


def _refuse_fields(base: Parent, model: Parent, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise UsageError if two configurations differ; an absent key equals an empty one."""
    differing = [
        f"{key} is {theirs.get(key)!r} in {model.folder} and {ours.get(key)!r} in {base.folder}"
        for key in sorted(ours.keys() | theirs.keys())
        if (ours.get(key) or None) != (theirs.get(key) or None)
    ]
    if differing:
        raise UsageError(f"the architectures differ: {'; '.join(differing[:4])}")


def _tensors(base: Parent, model: Parent) -> None:
    ours, theirs = base.tensors, model.tensors
    problems = [
        f"{name} is {list(theirs[name].shape)} in {model.folder} and {list(entry.shape)} in {base.folder}"
        for name, entry in ours.items()
        if name in theirs and theirs[name].shape != entry.shape
    ]
    problems += [f"{model.folder} lacks {name}" for name in ours if name not in theirs]
    problems += [f"{base.folder} lacks {name}" for name in theirs if name not in ours]
    problems += [
        f"{name} is {theirs[name].kind} in {model.folder} and {entry.kind} in {base.folder}"
        for name, entry in ours.items()
        if name in theirs and theirs[name].kind != entry.kind and {theirs[name].kind, entry.kind} - set(FLOATS)
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UsageError(f"the tensors differ: {'; '.join(problems[:4])}{more}")


def _tokenizers(base: Parent, model: Parent) -> None:
    if base.kind == "run":
        starts = [(p.config.get("start") or {}).get("sha256") for p in (base, model)]
        related = base.config["corpus"] == model.config["corpus"] or (
            starts[1] is not None and (starts[1] == starts[0] or starts[1] in base.hashes.values())
        )
        if not related:
            raise UsageError(
                f"{model.folder} and {base.folder} are runs on different corpora from different starts, so their "
                "tokenizers may differ; publish both and merge the published folders, which have tokenizers to compare"
            )
        return
    difference = tokenizer_difference(base.folder, model.folder)
    if difference is not None:
        raise UsageError(f"the tokenizers differ: {difference}")


def tokenizer_difference(base: Path, model: Path) -> str | None:
    """The difference between the tokenizers in the folders ``model`` and ``base``; None if both are equivalent.

    Raises:
        UsageError: the folders have no tokenizer file in common.
        DamagedFileError: a file cannot be read.
    """
    if all((folder / "tokenizer.json").is_file() for folder in (base, model)):
        ours, theirs = (read_json(folder / "tokenizer.json", "tokenizer", _REMEDY) for folder in (base, model))
        ids = [_token_ids(document) for document in (ours, theirs)]
        for token in sorted(ids[0].keys() | ids[1].keys()):
            if ids[0].get(token) != ids[1].get(token):
                meanings = [
                    f"is {i[token]} in {f}" if token in i else f"is not in {f}"
                    for i, f in zip(ids, (base, model), strict=True)
                ]
                count = sum(ids[0].get(t) != ids[1].get(t) for t in ids[0].keys() | ids[1].keys())
                return f"the token {token!r} {' and '.join(meanings)} ({count} tokens differ)"
        parts = [_parts(document) for document in (ours, theirs)]
        for name in parts[0]:
            if parts[0][name] != parts[1][name]:
                return f"'{name}' of tokenizer.json differs between {model} and {base}"
        return None
    shared = [name for name in _TOKENIZER_FILES if (base / name).is_file() and (model / name).is_file()]
    if not shared:
        raise UsageError(
            f"{base} and {model} have no tokenizer file in common (looked for tokenizer.json, "
            f"{', '.join(_TOKENIZER_FILES)}); complete the folder that lacks it"
        )
    for name in shared:
        if file_sha256(base / name) != file_sha256(model / name):
            return f"{name} differs between {model} and {base}"
    return None


def _token_ids(document: dict[str, Any]) -> dict[str, Any]:
    """The id of each token, including added ones."""
    try:
        vocabulary = document["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score, numbered by position
            vocabulary = {token: [place, score] for place, (token, score) in enumerate(vocabulary)}
        found = dict(vocabulary)
        for added in document.get("added_tokens") or []:
            found.setdefault(added["content"], added["id"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"a tokenizer.json has a vocabulary in an unknown format ({error!r}); {_REMEDY}") from error
    return found


def _parts(document: dict[str, Any]) -> dict[str, str]:
    """The other settings that affect the tokens of a text, normalised."""
    model = document["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges") or []]
    parts = {"normalizer": document.get("normalizer"), "pre_tokenizer": document.get("pre_tokenizer")}
    parts |= {f"model.{key}": model.get(key) or None for key in ("type", "unk_token", "byte_fallback", "ignore_merges")}
    parts["model.merges"] = merges
    parts["added_tokens"] = sorted((t["content"], t["id"]) for t in document.get("added_tokens") or [])
    return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}


def _origin(base: Parent, model: Parent) -> None:
    if model.run is not None and model.run == base.run:
        return  # checkpoints of the same run
    found = correlation(base, model)
    if found is not None and found < LEAST_CORRELATION:
        raise UsageError(
            f"{model.folder} does not come from {base.folder}: the median correlation of their matrices is {found:.2f},"
            f" but a model trained from the base has at least {LEAST_CORRELATION:g}. Give the model that both were "
            "trained from as the base"
        )


def correlation(base: Parent, model: Parent) -> float | None:
    """The median over matrices of the correlation between a model's and the base's values, from a sample.

    None if no matrix has varying, finite values: the correlation is then undefined.
    """
    matrices = [n for n, e in base.tensors.items() if len(e.shape) >= 2 and e.kind in FLOATS and e.bytes]
    found = []
    for name in matrices[:: max(1, len(matrices) // _SAMPLED_TENSORS)]:
        pair = [parent.read(name, _SAMPLED_NUMBERS).double() for parent in (base, model)]
        value = float(torch.corrcoef(torch.stack(pair))[0, 1]) if len(pair[0]) > 1 else float("nan")
        if math.isfinite(value):
            found.append(value)
    return float(torch.tensor(found).median()) if found else None


def _notes(models: Sequence[Parent]) -> list[str]:
    """Differences between the models that do not prevent a merge."""
    first, notes = models[0], []
    for model in models[1:]:
        if model.kind == "run":
            continue
        for name in ("chat_template.jinja", "generation_config.json"):
            ours, theirs = (p.folder / name for p in (first, model))
            contents = [path.read_bytes() if path.is_file() else b"" for path in (ours, theirs)]
            if contents[0] != contents[1]:
                notes.append(
                    f"{name} differs between {first.folder} and {model.folder}; that of {first.folder} is kept"
                )
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if first.config.get(key) != model.config.get(key):
                notes.append(
                    f"{key} is {first.config.get(key)!r} in {first.folder} and {model.config.get(key)!r} in "
                    f"{model.folder}; that of {first.folder} is kept"
                )
    return notes
