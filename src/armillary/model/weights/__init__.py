"""Weights on disk: one file per format."""

from armillary.model.weights.convert import Converted, ConvertOptions, convert
from armillary.model.weights.files import replace_folder, save_tensors
from armillary.model.weights.gguf import gguf_metadata
from armillary.model.weights.huggingface import export_hf, import_hf, read_shape
from armillary.model.weights.native import check_weights, load_weights, save_weights
from armillary.model.weights.opening import open_model
from armillary.model.weights.source import Source, build
from armillary.model.weights.telechat2 import is_telechat2
from armillary.model.weights.tokenizer_json import read_tokenizer, tokenizer_text

__all__ = [
    "ConvertOptions",
    "Converted",
    "Source",
    "build",
    "check_weights",
    "convert",
    "export_hf",
    "gguf_metadata",
    "import_hf",
    "is_telechat2",
    "load_weights",
    "open_model",
    "read_shape",
    "read_tokenizer",
    "replace_folder",
    "save_tensors",
    "save_weights",
    "tokenizer_text",
]
