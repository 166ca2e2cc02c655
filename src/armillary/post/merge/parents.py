"""Reads the models to merge: Hugging Face folders, folders of finished runs, and checkpoints of a run.

A parent lists its tensors without reading their values, and reads one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from armillary.post.merge.tensors import Entry, hash_file, read_header, read_tensor, stamp
from armillary.recipe import ArmillaryError, DamagedFileError, UsageError, read_json, read_spec
from armillary.train import CheckpointReader, verify_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_CHECKPOINT = "checkpoint.json"
_SPEC = "spec.json"
_REMEDY = "fetch or write the model again"


@dataclass(frozen=True)
class Parent:
    """A model to merge.

    Attributes:
        folder: folder of the model.
        kind: ``folder`` (Hugging Face format) or ``run`` (weights under our own names, without a tokenizer).
        config: ``config.json``, or the specification of a run as plain data.
        tensors: the tensors by name, in the order of the files.
        files: the file of each tensor, by its name in the folder.
        hashes: SHA-256 of each weight file, by its name in the folder.
        read: reads a tensor by its name, or only its first values as one row.
        run: id of the run, for the kind ``run``.
        step: step of a checkpoint.
        stamps: size and modification time of each weight file when it was hashed.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Entry]
    files: dict[str, str]
    hashes: dict[str, str]
    read: Callable[[str, int | None], Tensor]
    run: str | None = None
    step: int | None = None
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A hash of the hashes of all weight files."""
        return sha256(" ".join(self.hashes[name] for name in sorted(self.hashes)).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Raise DamagedFileError if a weight file was written after it was hashed."""
        for name, before in self.stamps.items():
            path = self.folder / name
            if not path.exists() or stamp(path) != before:
                raise DamagedFileError(f"{path}: changed during the merge; nothing was written. Merge again")


def open_parent(folder: Path) -> Parent:
    """The model in ``folder``.

    Raises:
        UsageError: not a folder, or not the folder of a model.
        ArmillaryError: weights are missing or torn.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; give a Hugging Face folder, a finished run or a checkpoint")
    if (folder / _CHECKPOINT).is_file():
        return _checkpoint(folder)
    if (folder / _SPEC).is_file():
        return _run(folder)
    if (folder / "config.json").is_file():
        return _folder(folder)
    if (folder / _ADAPTER).is_file():
        raise UsageError(
            f"{folder}: contains only a LoRA adapter; merge it into its base first (merge_and_unload of peft)"
        )
    raise UsageError(
        f"{folder}: has neither config.json (a Hugging Face folder), {_SPEC} (a finished run) nor {_CHECKPOINT} (a "
        "checkpoint)"
    )


def _folder(folder: Path) -> Parent:
    config = read_json(folder / "config.json", "model configuration", _REMEDY)
    if config.get("quantization_config"):
        raise UsageError(f"{folder}: its weights are quantised; give the unquantised folder")
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "index of weights", _REMEDY)
        weight_map: dict[str, str] | None = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise DamagedFileError(f"{folder / INDEX}: has no weight_map of names; {_REMEDY}")
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise DamagedFileError(
                f"{folder / INDEX}: refers to '{outside[0]}', which is not a file in the folder; {_REMEDY}"
            )
    elif (folder / WEIGHTS).is_file():
        weight_map, names = None, [WEIGHTS]
    else:
        raise UsageError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; weights of other formats are not read")
    tensors: dict[str, Entry] = {}
    files: dict[str, str] = {}
    for name in names:
        for key, entry in read_header(folder / name).items():
            if weight_map is None or weight_map.get(key) == name:
                tensors[key], files[key] = entry, name
    for key, name in (weight_map or {}).items():
        if key not in tensors:
            raise DamagedFileError(f"{folder / name}: lacks {key}, which is in the index; {_REMEDY}")
    if config.get("tie_word_embeddings"):
        # The second name of a tied matrix, which only some writers store.
        tensors.pop("lm_head.weight", None)
    for key in [key for key in tensors if key.endswith("rotary_emb.inv_freq")]:
        del tensors[key]
    return _with_files(Parent(folder, "folder", config, tensors, files, {}, _reader(folder, tensors, files)), names)


def _run(folder: Path) -> Parent:
    spec = read_spec(folder)
    if not (folder / WEIGHTS).is_file():
        raise ArmillaryError(
            f"{folder}: the run is not finished; finish it, or give one of its checkpoints (checkpoints/step-N)"
        )
    tensors = read_header(folder / WEIGHTS)
    files = dict.fromkeys(tensors, WEIGHTS)
    config = spec.model_dump(mode="json")
    found = Parent(folder, "run", config, tensors, files, {}, _reader(folder, tensors, files), run=spec.id)
    return _with_files(found, [WEIGHTS])


def _checkpoint(folder: Path) -> Parent:
    verify_checkpoint(folder)
    place = folder.resolve().parent.parent
    if not (place / _SPEC).is_file():
        raise UsageError(f"{folder}: {place / _SPEC}, which has the model's shape, is missing; keep the two together")
    spec = read_spec(place)
    verify_checkpoint(folder, spec.id)
    reader = CheckpointReader(folder)
    tensors = {name: Entry(reader.kind(name), size) for name, size in reader.parameters().items()}

    def read(name: str, most: int | None) -> Tensor:
        tensor = reader.whole(name)
        return tensor if most is None else tensor.reshape(-1)[:most]

    # The manifest holds the hashes of all files, which have just been checked.
    return Parent(
        folder,
        "run",
        spec.model_dump(mode="json"),
        tensors,
        dict.fromkeys(tensors, WEIGHTS),
        {_CHECKPOINT: hash_file(folder / _CHECKPOINT)},
        read,
        run=spec.id,
        step=int(folder.resolve().name.removeprefix("step-")),
    )


def _reader(folder: Path, tensors: dict[str, Entry], files: dict[str, str]) -> Callable[[str, int | None], Tensor]:
    return lambda name, most: read_tensor(folder / files[name], tensors[name], most)


def _with_files(parent: Parent, names: list[str]) -> Parent:
    """``parent`` with the hashes of its weight files."""
    for name in names:
        parent.stamps[name] = stamp(parent.folder / name)
        parent.hashes[name] = hash_file(parent.folder / name)
    return parent


def config_text(config: dict[str, Any]) -> str:
    """A configuration in Hugging Face's format."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
