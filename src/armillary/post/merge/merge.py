"""Merges models tensor by tensor into a new folder, which appears only when it is complete.

Memory holds one tensor of each parent and a few of the same size. The folder is written under a hidden name and then
renamed; after a kill, the next call removes the hidden folder. ``record.json``, written last, names the parents by
their hashes. A second call with the same parents and options finds the folder and does nothing; with others it refuses.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary import __version__
from armillary.files import HOST, aside, sync
from armillary.post.merge.agree import check_agreement
from armillary.post.merge.parents import INDEX, WEIGHTS, Parent, config_text, open_parent
from armillary.post.merge.registry import Group, MergeOptions, Method, method_named
from armillary.post.merge.tensors import FLOATS, KINDS, Entry, hash_file, write_tensors
from armillary.post.tuning import digest_of
from armillary.recipe import ArmillaryError, DamagedFileError, Edge, UsageError, exclusive, read_sealed, write_sealed

RECORD = "record.json"
FORMAT = 1
STAGE = "merge"
# Files copied from the first model. Files that describe its training or publication are not copied.
_KEPT = (
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.tiktoken",
    "*.py",
)

# Called with bytes done and total bytes.
Progress = Callable[[int, int], None]


def merge(
    base: Path, models: Sequence[Path], out: Path, options: MergeOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Merge ``models``, trained from ``base``, into the new folder ``out``; return its record.

    ``base`` matters for methods that add differences to it; in an average it counts only if it is also one of the
    models. Values are computed in fp32 (fp64 if a parent has it) and stored in the base's type.

    Raises:
        UsageError: the models differ (the message says how), options are out of range, or ``out`` holds something else.
        ArmillaryError: weights are unreadable or not finite, or the folder cannot be written.
    """
    method = method_named(options.method)
    weights = method.weights(options, len(models))
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give a new folder")
    with exclusive(out.parent / f".{out.name}.lock", f"merges into {out.name}"):
        for left in out.parent.glob(f".{out.name}.{HOST}.*"):
            shutil.rmtree(left, ignore_errors=True)
        parents = [open_parent(folder) for folder in (base, *models)]
        asked = _settings(method, weights, options)
        # relative to the folder, so that they remain valid if all folders move together
        places = [os.path.relpath(parent.folder.resolve(), out.resolve()) for parent in parents]
        inputs = [{"path": place, "sha256": parent.hashes} for place, parent in zip(places, parents, strict=True)]
        known = _known(out, asked, inputs)
        if known is not None:
            return known
        notes = check_agreement(parents[0], parents[1:])
        hidden = aside(out)
        try:
            return _write(hidden, out, parents, _Plan(method, weights, options, asked, inputs, notes, progress))
        except OSError as error:
            raise ArmillaryError(
                f"{out}: could not be written ({error.strerror or error}); it was removed. Free space or fix "
                "permissions, and merge again"
            ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a merged folder; its files are checked against their hashes.

    Raises:
        UsageError: the folder has no record of a merge.
        DamagedFileError, ForeignFileError: as ``read_sealed``, or a file is missing or changed; one line for each.
    """
    remedy = f"remove {folder} and merge again"
    try:
        record = read_sealed(folder / RECORD, "record of a merge", FORMAT, remedy)
    except FileNotFoundError:
        raise UsageError(f"{folder}: has no {RECORD}; it was not merged by this program") from None
    if record.get("stage") != STAGE:
        raise UsageError(
            f"{folder}: is the output of stage {record.get('stage')!r}, not of a merge; give another folder"
        )
    wrong = []
    for name, digest in record["outputs"].items():
        try:
            good = hash_file(folder / name) == digest
        except DamagedFileError:
            good = False
        if not good:
            wrong.append(f"{folder / name}: is missing or was changed after it was written; {remedy}")
    if wrong:
        raise DamagedFileError("\n".join(wrong))
    return record


@dataclass(frozen=True)
class _Plan:
    """A merge after all checks."""

    method: Method
    weights: tuple[float, ...]
    options: MergeOptions
    asked: dict[str, Any]
    inputs: list[dict[str, Any]]
    notes: list[str]
    progress: Progress | None


def _settings(method: Method, weights: tuple[float, ...], options: MergeOptions) -> dict[str, Any]:
    """The settings that determine the result, for the record."""
    return {"method": options.method, "weights": list(weights)} | {
        name: value for name, value in asdict(options).items() if name in method.uses
    }


def _known(out: Path, asked: dict[str, Any], inputs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of ``out`` if it already holds this merge; None if ``out`` is new or empty.

    Raises:
        UsageError: ``out`` holds something else; the message names it.
    """
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / RECORD).exists():
        held = min(entry.name for entry in out.iterdir())
        raise UsageError(f"{out}: contains '{held}' but no merge; give a new folder")
    record = read_record(out)
    differing = [
        f"{key} was {record['settings'].get(key)!r} and is {asked.get(key)!r}"
        for key in sorted(asked.keys() | record["settings"].keys())
        if record["settings"].get(key) != asked.get(key)
    ]
    if [one["sha256"] for one in record["inputs"]] != [one["sha256"] for one in inputs]:
        differing.append("the base or a model has changed")
    if differing:
        raise UsageError(f"{out}: contains another merge: {'; '.join(differing)}. Remove it, or give another folder")
    return record


def _write(hidden: Path, out: Path, parents: list[Parent], plan: _Plan) -> dict[str, Any]:
    base, models = parents[0], parents[1:]
    began = time.monotonic()
    hidden.mkdir(parents=True)
    done, total = 0, sum(entry.bytes for entry in base.tensors.values())

    def merged(name: str) -> Tensor:
        nonlocal done
        result = _tensor(name, base, models, plan)
        done += base.tensors[name].bytes
        if plan.progress is not None:
            plan.progress(done, total)
        return result

    files: dict[str, dict[str, Entry]] = {}
    for name, entry in base.tensors.items():
        files.setdefault(base.files[name], {})[name] = entry
    outputs = {file: write_tensors(hidden / file, entries, merged) for file, entries in files.items()}
    if list(files) != [WEIGHTS]:
        index = {"metadata": {"total_size": total}, "weight_map": {n: base.files[n] for n in base.tensors}}
        (hidden / INDEX).write_text(config_text(index), encoding="utf-8")
    if base.kind == "folder":
        _copy_texts(models[0], base, hidden)
    for parent in parents:
        parent.check_unchanged()
    for path in hidden.iterdir():
        if path.name not in outputs:
            outputs[path.name] = hash_file(path)
            sync(path)
    record = {
        "format": FORMAT,
        "stage": STAGE,
        "version": __version__,
        "settings": plan.asked,
        "inputs": plan.inputs,
        "runs": [{"run": parent.run, "step": parent.step} for parent in parents if parent.run],
        "outputs": outputs,
        "counts": {
            "tensors": len(base.tensors),
            "parameters": sum(entry.bytes // KINDS[entry.kind].itemsize for entry in base.tensors.values()),
            "bytes": total,
        },
        "seconds": round(time.monotonic() - began, 3),
        "lineage": _edges(parents, outputs, list(files)),
        "notes": plan.notes,
    }
    write_sealed(hidden / RECORD, record)
    sync(hidden)
    if out.exists():
        out.rmdir()  # an empty folder, which the rename below could not replace
    hidden.rename(out)
    sync(out.parent)
    return record


def _tensor(name: str, base: Parent, models: Sequence[Parent], plan: _Plan) -> Tensor:
    kind = base.tensors[name].kind
    read = [parent.read(name, None) for parent in (base, *models)]
    if kind not in FLOATS:
        for parent, tensor in zip(models, read[1:], strict=True):
            if not torch.equal(tensor, read[0]):
                raise UsageError(
                    f"{name} has integers that differ between {parent.folder} and {base.folder}; such a tensor "
                    "cannot be merged"
                )
        return read[0]
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in read) else torch.float32
    for parent, tensor in zip((base, *models), read, strict=True):
        if not _finite(tensor):
            raise ArmillaryError(
                f"{parent.folder}: {name} has NaN or infinite values; a diverged model cannot be merged"
            )
    wide = [tensor.to(dtype) for tensor in read]
    del read
    group = Group(name, wide[0], wide[1:], [model.id for model in models], plan.weights, plan.options)
    result = plan.method.combine(group).to(KINDS[kind])
    if not _finite(result):
        raise ArmillaryError(f"{name}: the merged numbers exceed the range of {kind}; give smaller weights or scale")
    return result


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite, without a mask of the tensor's size."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _copy_texts(model: Parent, base: Parent, hidden: Path) -> None:
    """Write configuration and tokenizer of ``model``, with the dtype of ``base``."""
    config = dict(model.config)
    for key in ("torch_dtype", "dtype"):
        if key in base.config:
            config[key] = base.config[key]
    (hidden / "config.json").write_text(config_text(config), encoding="utf-8")
    for pattern in _KEPT:
        for path in sorted(model.folder.glob(pattern)):
            if path.is_file():
                (hidden / path.name).write_bytes(path.read_bytes())


def _edges(parents: Sequence[Parent], outputs: dict[str, str], files: Sequence[str]) -> list[list[str]]:
    """The lineage: from the model to its parents, from each weight file to theirs, and from these to their runs."""
    edges = []
    models = [_model(parent) for parent in parents]
    if parents[0].kind == "folder" and None not in models:
        merged = f"model:{digest_of(outputs)}"
        hows = ["merged over", *["merged from"] * (len(parents) - 1)]
        edges += [Edge(merged, how, f"model:{model}") for how, model in zip(hows, models, strict=True)]
    for file in files:
        for number, parent in enumerate(parents):
            how = "merged over" if number == 0 else "merged from"
            edges += [Edge(f"weights:{outputs[file]}", how, f"weights:{digest}") for digest in parent.hashes.values()]
    for parent in parents:
        if parent.run is not None:
            edges += [Edge(f"weights:{digest}", "written by", f"run:{parent.run}") for digest in parent.hashes.values()]
    return [list(edge) for edge in dict.fromkeys(edges)]


def _model(parent: Parent) -> str | None:
    """The hash of a parent as a model in the record of a training; None without the files that it needs."""
    texts = {name: parent.folder / name for name in ("config.json", "tokenizer.json")}
    if not all(path.is_file() for path in texts.values()):
        return None
    return digest_of({**parent.hashes, **{name: hash_file(path) for name, path in texts.items()}})
