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
)

__all__ = [
    "Backend",
    "Choice",
    "Completion",
    "Cost",
    "Likelihood",
    "Message",
    "Pair",
    "Request",
    "Sampling",
]
