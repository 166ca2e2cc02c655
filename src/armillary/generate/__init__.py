"""Text and likelihoods from a model: one ``Backend`` protocol, and one file per engine.

Out of scope: training, scoring answers, and serving requests over a network.
"""

from armillary.generate.answers import Answers, check_answers, open_answers
from armillary.generate.backend import (
    Backend,
    BadRequestError,
    Choice,
    Completion,
    Cost,
    Likelihood,
    Message,
    Pair,
    Request,
    RequestError,
    Sampling,
    Streaming,
    seed_of,
    split_pair,
)
from armillary.generate.chat import ChatTemplate
from armillary.generate.completions import Prompt, PromptOptions, Written, complete_file, read_prompts
from armillary.generate.dialogue import Dialogue
from armillary.generate.open import open_backend
from armillary.generate.registry import BackendOptions, EndpointOptions, Prices
from armillary.generate.text import ModelText

__all__ = [
    "Answers",
    "Backend",
    "BackendOptions",
    "BadRequestError",
    "ChatTemplate",
    "Choice",
    "Completion",
    "Cost",
    "Dialogue",
    "EndpointOptions",
    "Likelihood",
    "Message",
    "ModelText",
    "Pair",
    "Prices",
    "Prompt",
    "PromptOptions",
    "Request",
    "RequestError",
    "Sampling",
    "Streaming",
    "Written",
    "batch",  # a module: it loads torch
    "check_answers",
    "complete_file",
    "guide",  # a module: it reads grammars
    "native",  # a module: it loads torch
    "open_answers",
    "open_backend",
    "read_prompts",
    "seed_of",
    "split_pair",
]
