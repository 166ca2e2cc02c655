"""Our own weights: one safetensors file, with tensors under the names of the modules.

The file does not hold the shape. In a run, the shape is in the run's specification and the weights are fp32. In a
folder that ``convert`` wrote, ``armillary.json`` has the shape, and the weights have any floating-point type and may be
in several files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from armillary.model.transformer import Transformer
from armillary.model.weights.files import check_tensors, save_tensors
from armillary.model.weights.shards import Shards
from armillary.model.weights.source import Export, Piece, Source, Special, plan
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ModelShape,
    RunSpec,
    UsageError,
    read_json,
    read_sealed,
    reason_of,
    sealed,
)

DESCRIPTION = "armillary.json"
FORMAT = 1
_SPEC, _RESULT = "spec.json", "result.json"
_REMEDY = "convert the model again, or fetch the folder again"


def save_weights(model: Transformer, path: Path) -> None:
    """Write the parameters and the biases of experts of ``model``; the file appears only complete and flushed."""
    save_tensors(model.state_dict(), path)


def load_weights(path: Path, shape: ModelShape) -> Transformer:
    """A model of ``shape`` with the parameters that ``save_weights`` wrote, on the CPU.

    Raises:
        ArmillaryError: the file cannot be read, is torn, or its tensors are not those of ``shape`` (named).
    """
    check_weights(path, shape)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    with torch.device("meta"):
        model = Transformer(shape)
    model.load_state_dict(tensors, assign=True)
    return model


def check_weights(path: Path, shape: ModelShape) -> None:
    """Compare names, sizes and types of the tensors in a weight file with a model's, without reading the values.

    Raises:
        ArmillaryError: as ``load_weights``.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            sizes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
            kinds = {name: tensor.get_dtype() for name, tensor in slices.items()}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Transformer(shape).state_dict().items()}
    check_tensors(path, sizes, wanted)
    other = next((name for name, kind in kinds.items() if kind != "F32"), None)
    if other is not None:
        raise ArmillaryError(f"{path}: the weights do not belong to a run: {other} is {kinds[other]} and should be F32")


def _unreadable(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path}: cannot be read as weights ({reason_of(error)}); copy it or train it again")


def is_native(folder: Path) -> bool:
    """Whether ``folder`` holds a model in our own format: a converted one, or a run."""
    return (folder / DESCRIPTION).is_file() or ((folder / _SPEC).is_file() and not (folder / "config.json").exists())


class NativeSource(Source):
    """A folder that ``convert`` wrote, or a finished run.

    Raises:
        UsageError: the run is not finished.
        DamagedFileError: the description or the specification is torn or edited.
        ForeignFileError: the description has a newer format.
        ArmillaryError: weights that are missing, torn, or not those of the shape.
    """

    format = "native"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            if (folder / DESCRIPTION).is_file():
                document = read_sealed(folder / DESCRIPTION, "description of a model", FORMAT, _REMEDY)
                self.shape = ModelShape.model_validate(document["shape"])
                self.context_length = document["context_length"]
                self.special = _special(document["special"])
            else:
                spec = RunSpec.model_validate(read_json(folder / _SPEC, "run specification", _REMEDY))
                self.shape, self.context_length = spec.model, spec.longest
                if not (folder / _RESULT).is_file():
                    raise UsageError(f"{folder}: this run is not finished (it has no {_RESULT}); finish it first")
        except (ValueError, TypeError) as error:
            raise DamagedFileError(f"{folder}: its description is not that of a model ({error}); {_REMEDY}") from error
        self._shards = Shards(folder)
        self.dtype = self._shards.dtype()
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in Transformer(self.shape).state_dict().items()}
        check_tensors(folder, {name: entry.size for name, entry in self._shards.entries.items()}, wanted)

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        return self._shards.tensor(name, expert)


def export_native(source: Source, dtype: torch.dtype) -> Export:
    """What a folder in our own format holds of ``source``."""
    special = source.special
    document: dict[str, Any] = {
        "format": FORMAT,
        "shape": source.shape.model_dump(mode="json"),
        "context_length": source.context_length,
        "special": {"begin": special.begin, "end": special.end, "fill": special.fill},
    }
    with torch.device("meta"):
        sizes = {name: tuple(values.shape) for name, values in Transformer(source.shape).state_dict().items()}
    pieces = [Piece(name, size, ((name, None),)) for name, size in sizes.items()]
    return Export({DESCRIPTION: sealed(document)}, plan(pieces, source, dtype))


def _special(document: dict[str, Any]) -> Special:
    end = document["end"]
    return Special(document["begin"], tuple(end) if isinstance(end, list) else end, document["fill"])
