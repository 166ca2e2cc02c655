"""The decoder-only transformer, text from it, and its weights on disk. Free of parallel code."""

from armillary.model.generate import generate
from armillary.model.moe import MixtureOfExperts, balance_experts, dispatch, grouped_swiglu, mixtures, set_batch_weight
from armillary.model.native import keep_freed_memory, prefer_large_pages
from armillary.model.operators import TokenError, check_tokens, mean_share, without_ignored
from armillary.model.places import Places, document_starts, visible
from armillary.model.roles import Role, gain
from armillary.model.transformer import Layer, Part, Transformer, model_roles
from armillary.model.weights import check_weights, export_hf, import_hf, load_weights, replace_folder, save_weights
from armillary.model.width import orthogonalised, width_factors

__all__ = [
    "Layer",
    "MixtureOfExperts",
    "Part",
    "Places",
    "Role",
    "TokenError",
    "Transformer",
    "balance_experts",
    "check_tokens",
    "check_weights",
    "dispatch",
    "document_starts",
    "export_hf",
    "gain",
    "generate",
    "grouped_swiglu",
    "import_hf",
    "keep_freed_memory",
    "load_weights",
    "mean_share",
    "mixtures",
    "model_roles",
    "orthogonalised",
    "prefer_large_pages",
    "replace_folder",
    "save_weights",
    "set_batch_weight",
    "visible",
    "width_factors",
    "without_ignored",
]
