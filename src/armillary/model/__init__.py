"""The decoder-only transformer and its weights on disk. Free of parallel code."""

from armillary.model.blocks import Attention, FeedForward, LatentAttention, ReLU2FeedForward
from armillary.model.logits import logits_of, write_logits
from armillary.model.lora import adapter_state, add_adapters, draw_adapters, export_adapter, merged_state
from armillary.model.moe import MixtureOfExperts, balance_experts, dispatch, grouped_swiglu, mixtures, set_batch_weight
from armillary.model.native import compiled, keep_freed_memory, kernels, prefer_large_pages
from armillary.model.operators import (
    TokenError,
    check_tokens,
    linear_cross_entropy,
    mean_share,
    prepare,
    reduce_logits,
    without_ignored,
)
from armillary.model.places import Places, document_starts, visible
from armillary.model.preference import PairTargets, answer_sums, pair_losses, preference_sums, slots_for
from armillary.model.roles import Role, gain
from armillary.model.rotary import rotary_tables
from armillary.model.transformer import Layer, Part, Transformer, model_roles
from armillary.model.weights import (
    Converted,
    ConvertOptions,
    Source,
    build,
    check_weights,
    convert,
    export_hf,
    import_hf,
    is_telechat2,
    load_weights,
    open_model,
    read_shape,
    replace_folder,
    save_tensors,
    save_weights,
)
from armillary.model.width import orthogonalised, width_factors

__all__ = [
    "Attention",
    "ConvertOptions",
    "Converted",
    "FeedForward",
    "LatentAttention",
    "Layer",
    "MixtureOfExperts",
    "PairTargets",
    "Part",
    "Places",
    "ReLU2FeedForward",
    "Role",
    "Source",
    "TokenError",
    "Transformer",
    "adapter_state",
    "add_adapters",
    "answer_sums",
    "balance_experts",
    "build",
    "check_tokens",
    "check_weights",
    "compiled",
    "convert",
    "dispatch",
    "document_starts",
    "draw_adapters",
    "export_adapter",
    "export_hf",
    "gain",
    "grouped_swiglu",
    "import_hf",
    "is_telechat2",
    "keep_freed_memory",
    "kernels",
    "linear_cross_entropy",
    "load_weights",
    "logits_of",
    "mean_share",
    "merged_state",
    "mixtures",
    "model_roles",
    "open_model",
    "operators",
    "orthogonalised",
    "pair_losses",
    "prefer_large_pages",
    "preference_sums",
    "prepare",
    "read_shape",
    "reduce_logits",
    "replace_folder",
    "rotary_tables",
    "save_tensors",
    "save_weights",
    "set_batch_weight",
    "slots_for",
    "visible",
    "width_factors",
    "without_ignored",
    "write_logits",
]
