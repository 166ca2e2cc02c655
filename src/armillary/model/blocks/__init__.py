"""The blocks of a layer, one file each: attention and feed-forward."""

from armillary.model.blocks.grouped_query import Attention
from armillary.model.blocks.swiglu import FeedForward

__all__ = ["Attention", "FeedForward"]
