"""Our own weight files: one safetensors file, with tensors under the names of the modules and in their dtype.

The file does not hold the shape, which is in the run's specification.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from armillary.model.transformer import Transformer
from armillary.model.weights.files import check_tensors, save_tensors
from armillary.recipe import ArmillaryError, DamagedFileError, ModelShape


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
        raise ArmillaryError(f"{path}: the weights are not those of a run: {other} is {kinds[other]} and should be F32")


def _unreadable(path: Path, error: Exception) -> DamagedFileError:
    said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return DamagedFileError(f"{path}: cannot be read as weights ({said}); copy or train it again")
