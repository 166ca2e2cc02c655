"""Weights on disk: one file per format."""

from armillary.model.weights.files import replace_folder, save_tensors
from armillary.model.weights.huggingface import export_hf, import_hf, read_shape
from armillary.model.weights.native import check_weights, load_weights, save_weights

__all__ = [
    "check_weights",
    "export_hf",
    "import_hf",
    "load_weights",
    "read_shape",
    "replace_folder",
    "save_tensors",
    "save_weights",
]
