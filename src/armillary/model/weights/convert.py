"""Converts a model on disk from one format to another, tensor by tensor.

The new folder is written under a hidden name beside the target and renamed at the end, after the check. A process that
is killed leaves nothing under the name of the target, and possibly the hidden folder ``.NAME.HOST.*``. Its writer holds
a lock on it, so the next call for the same target detects a dead writer and removes the folder.

Memory holds one tensor and the mapped pages of one file of the source; only the check loads a whole model.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from armillary.files import HOST, aside, sync
from armillary.model.weights import gguf
from armillary.model.weights.gguf import export_gguf
from armillary.model.weights.huggingface import export_huggingface
from armillary.model.weights.mindspore import export_mindspore
from armillary.model.weights.native import export_native
from armillary.model.weights.opening import open_model
from armillary.model.weights.quantized import BITS
from armillary.model.weights.scaled import scaled
from armillary.model.weights.sentencepiece import tokenizer_config
from armillary.model.weights.source import Export, Source, build
from armillary.model.weights.telechat2 import export_telechat2
from armillary.model.weights.tokenizer_json import as_text, model_text, read_tokenizer
from armillary.recipe import ArmillaryError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS: dict[str, Callable[[Source, torch.dtype], Export]] = {
    "native": export_native,
    "huggingface": export_huggingface,
    "telechat2": export_telechat2,
    "mindspore": partial(export_mindspore, container="ckpt"),
    "gguf": export_gguf,
}
QUANTIZED = {"gguf": gguf.QUANTIZED, "huggingface": tuple(BITS)}
CONTAINERS = ("ckpt", "safetensors")
# Copied unchanged into the new folder.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json"),
)
# Difference of fp32 logits, relative to the largest, above which a conversion in fp32 is wrong.
EXACT = 1e-5
_TEXT = "The sphere shows where the heavens will be. 浑仪示天, 1957: é — x = 3.14;\n" * 3


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert: the format ``to`` write, the type of the weights (None: the source's), whether to ``check``.

    ``config`` is the configuration of a checkpoint of MindSpore; ``container`` is the kind of file to write for it.
    ``quantize`` (``QUANTIZED``) is for GGUF files and folders of Hugging Face. ``calibration`` gives tokens [n, length]
    for int8 and int4, whose channels are then scaled by the activations on them (``scaled.py``).
    """

    to: str
    dtype: str | None = None
    check: bool = False
    config: Path | None = None
    container: str | None = None
    quantize: str | None = None
    calibration: Callable[[Source], Tensor] | None = None


@dataclass(frozen=True)
class Converted:
    """What ``convert`` did; ``difference`` of logits, absolute and relative to the largest, if it was checked.

    ``no_tokenizer`` says why the new folder lacks the tokenizer that the source holds.
    """

    source: str
    to: str
    dtype: str
    bytes: int
    tokenizer_files: tuple[str, ...]
    difference: float | None = None
    relative: float | None = None
    no_tokenizer: str | None = None


def convert(
    src: Path,
    dst: Path,
    options: ConvertOptions,
    progress: Callable[[int, int], None] = lambda done, of: None,
    finish: Callable[[Source, Path], None] | None = None,
) -> Converted:
    """Convert the model in ``src`` to a new folder ``dst``; ``progress`` is called with bytes written and bytes in all.

    ``finish`` gets the source and the complete folder before it has its name, and may add files to it.

    With ``check``, both sides compute the logits of random tokens, and of a text where there is a ``tokenizer.json``.
    A conversion in fp32 whose logits differ by more than ``EXACT`` is not kept.

    Raises:
        UsageError: ``dst`` exists or is inside ``src``, the format or type does not exist, or the format lacks a
            feature.
        ArmillaryError: weights that cannot be read or are not finite, too little space, or a failed check.
    """
    for name, value, known in (("to", options.to, [*FORMATS]), ("dtype", options.dtype or "float32", [*DTYPES])):
        if value not in known:
            raise UsageError(f"--{name} {value}: unknown; give one of {', '.join(known)}")
    if options.container is not None and (options.to != "mindspore" or options.container not in CONTAINERS):
        raise UsageError(f"--container {options.container}: give {' or '.join(CONTAINERS)}, and only for mindspore")
    if options.quantize is not None and options.quantize not in QUANTIZED.get(options.to, ()):
        choices = "; ".join(f"--to {name} takes {' or '.join(kinds)}" for name, kinds in QUANTIZED.items())
        raise UsageError(f"--quantize {options.quantize} with --to {options.to}: {choices}; the others take none")
    source = open_model(src, options.config)
    _check_target(src, dst)
    dtype = DTYPES[options.dtype] if options.dtype else _kept(source.dtype)
    write = FORMATS[options.to]
    if options.container is not None:
        write = partial(export_mindspore, container=options.container)
    if options.quantize is not None:
        write = partial(export_gguf if options.to == "gguf" else export_huggingface, quantize=options.quantize)
    weights = source
    if options.calibration is not None:
        if options.quantize not in BITS:
            raise UsageError(f"--calibrate: only for --quantize {' or '.join(BITS)}; llama.cpp's types do not use it")
        weights = scaled(source, options.calibration(source), BITS[options.quantize])
    try:
        export = write(weights, dtype)
    except UsageError as error:  # a shape knows no file
        raise error if str(src) in str(error) else UsageError(f"{src}: {error}") from error
    total = sum(tensor.bytes for tensor in export.tensors)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    single = gguf.FILE if options.to == "gguf" and dst.suffix == ".gguf" else None
    if single and finish is not None:
        raise UsageError(f"{dst}: is a single file, which cannot contain a card; give the name of a folder")
    with new_path(dst, total, single) as folder:
        carried, no_tokenizer = ([], None) if single else _carry(src, source, folder)
        if options.to == "huggingface" and no_tokenizer is None:
            carried, no_tokenizer = _without_code(source, folder, carried)
        for name, document in export.documents.items():
            if name not in carried:
                text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
                (folder / name).write_text(text + "\n", encoding="utf-8")
        export.write(folder, export.tensors, written)
        difference = relative = None
        if options.check:
            difference, relative = compare(source, open_model(folder / single if single else folder))
            if dtype == torch.float32 and options.quantize is None and not relative <= EXACT:
                raise ArmillaryError(
                    f"{dst}: not written: its logits differ from those of {src} by {difference:.3g} ({relative:.3g} of "
                    f"the largest), more than {EXACT:g}; please report it with the configuration of the model"
                )
        if finish is not None:
            finish(source, folder)
    stored = options.quantize or str(dtype).removeprefix("torch.")
    size = sum(path.stat().st_size for path in ([dst] if dst.is_file() else dst.rglob("*")) if path.is_file())
    return Converted(source.format, options.to, stored, size, tuple(carried), difference, relative, no_tokenizer)


def _kept(dtype: torch.dtype) -> torch.dtype:
    """The type of the weights if none is given: the source's, and fp32 for fp64."""
    return dtype if dtype in DTYPES.values() else torch.float32


def _check_target(src: Path, dst: Path) -> None:
    if dst.parent.is_dir():
        _remove_abandoned(dst)
    if dst.exists() or dst.is_symlink():
        raise UsageError(f"{dst}: exists; nothing is overwritten. Give a new name, or move it away")
    if src.resolve() in dst.resolve().parents:
        raise UsageError(f"{dst}: is inside {src}; give a place outside")


@contextmanager
def new_path(dst: Path, size: int, single: str | None) -> Iterator[Path]:
    """Yield a folder to fill; it, or its file ``single``, gets the name ``dst`` when the block ends without an error.

    Raises:
        ArmillaryError: the disk has less free space than ``size`` bytes.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(dst.parent).free
    if free < size:
        raise ArmillaryError(f"{dst}: needs {size / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free; free space")
    hidden, lock = _locked_folder(dst)
    try:
        yield hidden
        for path in hidden.iterdir():
            sync(path)
        sync(hidden)
        if dst.exists():  # made meanwhile: a rename would replace an empty folder
            raise UsageError(f"{dst}: exists; nothing is overwritten. Give a new name, or move it away")
        (hidden / single if single else hidden).rename(dst)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)
    sync(dst.parent)


def _locked_folder(dst: Path) -> tuple[Path, int]:
    """A new hidden folder beside ``dst``, and the descriptor that locks it until the process ends."""
    while True:
        hidden = aside(dst)
        hidden.mkdir()
        lock = os.open(hidden, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if hidden.exists():
                return hidden, lock
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks, on which nothing is removed
            return hidden, lock
        os.close(lock)  # another call took the new folder for an abandoned one


def _remove_abandoned(dst: Path) -> None:
    """Remove what killed conversions to ``dst`` on this machine left."""
    form = re.compile(rf"\.{re.escape(dst.name)}\.{re.escape(HOST)}\.[0-9a-f]{{12}}")
    for path in dst.parent.iterdir():
        if not form.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its writer has just ended
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # its writer lives, or the file system has no locks
            pass
        finally:
            os.close(lock)


def _carry(src: Path, source: Source, folder: Path) -> tuple[list[str], str | None]:
    """Write the files of the tokenizer; returns their names, and why the one that ``source`` holds is not among them.

    A weights file that holds its tokenizer is given alone: files beside it may be those of another model.
    """
    found = _copy(src, folder) if src.is_dir() else []
    if {"tokenizer.json", "tokenizer.model"} & {*found}:
        return found, None
    try:
        own = source.tokenizer_files()
    except UsageError as error:
        return found, str(error)
    for name, text in own.items():
        (folder / name).write_text(text, encoding="utf-8")
    if own or src.is_dir():
        return [*dict.fromkeys((*found, *own))], None
    return _copy(src.parent, folder), None


def _without_code(source: Source, folder: Path, carried: list[str]) -> tuple[list[str], str | None]:
    """Make the tokenizer in ``folder`` one that ``transformers`` loads without the code of its release.

    A ``tokenizer.model`` alone gets a ``tokenizer.json``. Returns the names of the files, and why the tokenizer needs
    its code, if it does.
    """
    if "tokenizer.json" not in carried:
        if "tokenizer.model" not in carried:
            return carried, None
        try:
            (folder / "tokenizer.json").write_text(model_text(folder), encoding="utf-8")
        except UsageError as error:
            return carried, str(error).replace(str(folder), str(source.folder))
        carried = [*carried, "tokenizer.json"]
    config = tokenizer_config(folder)
    if "tokenizer.model" not in carried or (config and "auto_map" not in config):
        return carried, None
    config.pop("auto_map", None)
    for name, value in config.items():
        if name.endswith("_token") and isinstance(value, dict):
            config[name] = value.get("content")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(as_text(config), encoding="utf-8")
    code = [name for name in carried if name.endswith(".py")]
    for name in code:
        (folder / name).unlink()
    return [*dict.fromkeys([*(name for name in carried if name not in code), "tokenizer_config.json"])], None


def _copy(src: Path, folder: Path) -> list[str]:
    """Copy the files of the tokenizer in ``src``; returns their names."""
    found = [name for name in TOKENIZER_FILES if (src / name).is_file()]
    found += sorted(path.name for path in src.glob("tokenization_*.py"))
    for name in found:
        shutil.copyfile(src / name, folder / name)
    return found


def compare(one: Source, other: Source) -> tuple[float, float]:
    """The largest difference of the logits of two models on disk, and its share of the largest logit."""
    batches = _sample(one)
    first, second = _logits(one, batches), _logits(other, batches)
    difference = max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
    return difference, difference / max(float(a.abs().max()) for a in first)


@torch.no_grad()
def _logits(source: Source, batches: list[Tensor]) -> list[Tensor]:
    model = build(source)
    return [model(tokens) for tokens in batches]


def _sample(source: Source) -> list[Tensor]:
    """Random tokens, and those of a text if the model has a tokenizer that is read here."""
    longest, size = min(source.context_length or 128, 128), source.shape.vocab_size
    batches = [torch.randint(0, size, (2, longest), generator=torch.Generator().manual_seed(0))]
    try:
        text = source.tokenizer_text()
        ids = [] if text is None else read_tokenizer(source.folder, text).encode(_TEXT).ids[:longest]
    except ArmillaryError:  # the random tokens are enough for a check
        ids = []
    if ids and max(ids) < size:
        batches.append(torch.tensor([ids]))
    return batches
