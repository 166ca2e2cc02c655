"""Text and likelihoods from a model: one ``Backend`` protocol, and one file for each engine behind it.

What it does not do: train, score answers, or serve requests over a network.
"""

from armillary.generate.backend import (
    Backend,
    Choice,
    Completion,
    Cost,
    Likelihood,
    Message,
    Pair,
    Request,
    Sampling,
    Streaming,
    seed_of,
    split_pair,
)
from armillary.generate.open import open_backend
from armillary.generate.registry import BackendOptions, EndpointOptions, Prices

__all__ = [
    "Backend",
    "BackendOptions",
    "Choice",
    "Completion",
    "Cost",
    "EndpointOptions",
    "Likelihood",
    "Message",
    "Pair",
    "Prices",
    "Request",
    "Sampling",
    "Streaming",
    "open_backend",
    "seed_of",
    "split_pair",
]
