"""The lineage of a model without one: a fine-tuned, merged or downloaded folder.

It states only what the folder itself proves: shape, class, and the hashes of its files. A folder that `post sft` or
`post dpo` wrote also has ``record.json`` beside it, and one of `post merge` has it inside. If the hashes there are
those of the folder, the record is a part of the lineage. So are the edges of the `post run` that it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import armillary
from armillary.model import Source, open_model
from armillary.publish import ledger
from armillary.recipe import ArmillaryError, Edge, UsageError, read_sealed, walk_back

_RECORD, _RECORD_FORMAT = "record.json", 1
# Names of the files of a model; pickles (``.bin``, ``.pt``) are refused, since they can run code.
_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|[\w.-]+\.gguf|tokenizer\.model|merges\.txt"
    r"|chat_template\.jinja|armillary\.json|record\.json|[\w.-]+\.ckpt|(modeling|configuration|tokenization)_\w+\.py|(LICEN[SC]E|NOTICE)[\w.-]*|README\.md"
)
# Keys of the record of a training that go into the lineage.
_KEPT = (
    *("run", "steps", "lr", "batch_sequences", "context_length", "precision", "data", "pairs", "held_out"),
    *("train_loss", "loss_before", "loss_after", "settings"),
)


def plain_lineage(model: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The lineage of the folder ``model``, and the SHA-256 of each of its files.

    Raises:
        UsageError: a file that is not one of a model, or a model that cannot be opened here.
        ArmillaryError: weights that cannot be read.
    """
    for path in sorted(model.iterdir()):
        if not path.is_file() or path.is_symlink() or not _FILES.fullmatch(path.name):
            raise UsageError(f"{model}: contains '{path.name}', which is not a file of a model; move it away")
    digests = ledger.fingerprints(model)
    return unrecorded(open_model(model), digests), digests


def unrecorded(source: Source, digests: Mapping[str, str]) -> dict[str, Any]:
    """The lineage of a ``source`` whose training was not recorded, with the SHA-256 of its files."""
    folder = source.folder if source.folder.is_dir() else source.folder.parent
    training = _training(folder, digests)
    edges = _merged(folder, digests) if training is None else training.pop("edges")
    node = next((edge[0] for edge in edges if edge[0].startswith("model:")), None)
    names: dict[str, str] = {}
    if node is not None and (whole := _teaching(folder)) is not None:
        known = dict.fromkeys((*map(tuple, edges), *map(tuple, whole["edges"])))
        found = {node, *walk_back([Edge(*edge) for edge in known], node)}
        edges = [list(edge) for edge in known if edge[0] in found]
        names = {name: str(whole["names"][name]) for name in sorted(found & whole["names"].keys())}
    return {
        "format": 2,
        "weights": weights_of(folder, digests),
        "code": {"armillary": armillary.__version__, "commit": None},
        "run": None if training is None else training["run"],
        "node": node,
        "edges": edges,
        "names": names,
        "model": facts(source, folder),
        "training": training,
    }


def facts(source: Source, folder: Path) -> dict[str, Any]:
    """What the files in ``folder`` say of the model ``source`` in it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):  # formats without this file or key
        kind = None
    return {
        "format": source.format,
        "class": kind,
        "parameters": source.shape.parameters,
        "layers": source.shape.n_layers,
        "width": source.shape.d_model,
        "vocabulary": source.shape.vocab_size,
        "context_length": source.context_length,
        "chat": _has_template(folder),
    }


def weights_of(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Name and SHA-256 of the largest file, which holds the weights or their first part."""
    largest = max(digests, key=lambda name: ((folder / name).stat().st_size, name))
    return {"file": largest, "sha256": digests[largest]}


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _merged(model: Path, digests: Mapping[str, str]) -> list[list[str]]:
    """The edges in the record of the merge that wrote ``model``; none if there is none, or if it is of other files."""
    try:
        record = read_sealed(model / _RECORD, "record of a merge", _RECORD_FORMAT, "merge again")
    except (ArmillaryError, OSError):
        return []
    same = all(digests.get(name) == digest for name, digest in record.get("outputs", {}).items())
    return list(record.get("lineage", [])) if same and "outputs" in record else []


def _teaching(model: Path) -> dict[str, Any] | None:
    """The record of the post-training in whose folder ``model`` is, or the folder of its stage; None without one."""
    for place in (model.parent, model.parent.parent):
        try:
            record = read_sealed(place / _RECORD, "record of a post-training", _RECORD_FORMAT, "run it again")
        except (ArmillaryError, OSError):
            continue
        if "taken" in record and "edges" in record:
            return record
    return None


def _training(model: Path, digests: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of the training beside ``model``; None if there is none, or if it is of other files."""
    try:
        record = read_sealed(model.parent / _RECORD, "record of a training", _RECORD_FORMAT, "train again")
    except (ArmillaryError, OSError):
        return None
    files, edges = record.get("files"), record.get("edges")
    weights = {name for name in digests if name.endswith(".safetensors")}
    if not isinstance(files, dict) or not weights <= files.keys() or not edges or "run" not in record:
        return None
    if any(digests.get(name) != digest for name, digest in files.items()):
        return None
    return {key: record[key] for key in _KEPT if key in record} | {"edges": edges}
