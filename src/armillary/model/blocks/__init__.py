"""The blocks of a layer, one file each: attention and feed-forward."""

from armillary.model.blocks.grouped_query import Attention
from armillary.model.blocks.latent import LatentAttention
from armillary.model.blocks.registry import (
    AttentionModule,
    build_attention,
    build_feed_forward,
    register_attention,
    register_feed_forward,
)
from armillary.model.blocks.relu2 import ReLU2FeedForward
from armillary.model.blocks.swiglu import FeedForward

__all__ = [
    "Attention",
    "AttentionModule",
    "FeedForward",
    "LatentAttention",
    "ReLU2FeedForward",
    "build_attention",
    "build_feed_forward",
    "register_attention",
    "register_feed_forward",
]
