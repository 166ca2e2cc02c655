"""Opens a model on disk in any format that is read here; the format follows from the files of the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from armillary.model.weights.gguf import GGUFSource, is_gguf
from armillary.model.weights.huggingface import HuggingFaceSource
from armillary.model.weights.mindspore import MindSporeSource, is_mindspore
from armillary.model.weights.native import NativeSource, is_native
from armillary.model.weights.source import Source
from armillary.model.weights.telechat2 import TeleChat2Source, is_telechat2
from armillary.recipe import UsageError


@dataclass(frozen=True)
class _Format:
    recognises: Callable[[Path], bool]
    open: Callable[[Path], Source]


# The first that recognises a path opens it.
_FORMATS = (
    _Format(is_gguf, GGUFSource),
    _Format(is_native, NativeSource),
    _Format(is_mindspore, MindSporeSource),
    _Format(is_telechat2, TeleChat2Source),
    _Format(lambda path: (path / "config.json").is_file(), HuggingFaceSource),
)


def open_model(path: Path, config: Path | None = None) -> Source:
    """The model in ``path``; its shape and the names and sizes of its tensors are checked.

    ``config`` is the configuration of a checkpoint of MindSpore, if it does not lie beside it.

    Raises:
        UsageError: there is no such file or folder, its format is not one of those read here, or it has a feature that
            our transformer does not compute (named).
        ArmillaryError: its weights are missing, torn, or of other names or sizes than its configuration states.
    """
    if not path.exists():
        raise UsageError(f"{path}: not found; give the folder of a model")
    if config is not None:
        if not is_mindspore(path):
            raise UsageError(f"{path}: --config is for MindSpore checkpoints; this model has its own")
        return MindSporeSource(path, config)
    for each in _FORMATS:
        if each.recognises(path):
            return each.open(path)
    raise UsageError(
        f"{path}: not a model: a folder with armillary.json, a finished run, a MindSpore checkpoint, a .gguf "
        "file, or a folder with config.json and *.safetensors is"
    )
