"""Our own weight files: one safetensors file, tensors under the names of the modules, in the dtype they have.

The shape is not in the file: it stands in the run's specification, which is what one loads a run by.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from armillary.model.transformer import Transformer
from armillary.model.weights.files import check_tensors, save_tensors
from armillary.recipe import ArmillaryError, ModelShape


def save_weights(model: Transformer, path: Path) -> None:
    """Write the parameters, and biases of experts, of ``model``; the file appears only whole and on the disk."""
    save_tensors(model.state_dict(), path)


def load_weights(path: Path, shape: ModelShape) -> Transformer:
    """A model of ``shape`` with the parameters that ``save_weights`` wrote, on the CPU.

    Raises:
        ArmillaryError: the file cannot be read, is torn, or its tensors are not those of ``shape`` (named).
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArmillaryError(f"{path}: cannot be read as weights ({error}); copy or train it again") from error
    with torch.device("meta"):
        model = Transformer(shape)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted)
    model.load_state_dict(tensors, assign=True)
    return model
