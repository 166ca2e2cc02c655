"""Sampling text from a model, token by token.

Trade-off: no key-value cache. Every token costs a forward pass over all tokens before it, which for the short samples
of a report takes about a second and keeps the model free of a second code path; serving belongs to an inference engine
that loads the exported folder.
"""

from __future__ import annotations

import torch

from armillary.model.transformer import Transformer
from armillary.recipe import UsageError


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    end_token: int | None,
) -> list[int]:
    """The tokens that follow ``prompt``: at most ``max_new_tokens``, without the prompt and without ``end_token``.

    Samples from the softmax of ``logits / temperature``, cut to its nucleus: the fewest most likely tokens that
    together have at least ``top_p`` of the probability (Holtzman et al. 2020, section 3.1). ``temperature`` 0 takes
    the most likely token. The result depends on the model, the arguments and ``seed`` alone.

    Raises:
        UsageError: an empty prompt, a token outside the vocabulary, a temperature below 0, top_p outside (0, 1].
    """
    if not prompt:
        raise UsageError("generate: the prompt is empty; give at least one token (the end token starts a document)")
    outside = [token for token in prompt if not 0 <= token < model.shape.vocab_size]
    if outside:
        raise UsageError(
            f"generate: token {outside[0]} of the prompt is not in the vocabulary of {model.shape.vocab_size} tokens; "
            "encode the prompt with the tokenizer the model was trained with"
        )
    if not temperature >= 0:
        raise UsageError(f"generate: temperature must be 0 (most likely token) or more, given {temperature}")
    if not 0 < top_p <= 1:
        raise UsageError(f"generate: top_p must lie above 0 and not above 1, given {top_p}")
    generator = torch.Generator().manual_seed(seed)
    device = model.output_weight.device
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_new_tokens:
        last = model.features(torch.tensor([tokens], device=device))[0, -1]
        # float64 on the CPU: the draw is then the same on every device that agrees on the logits
        logits = (model.output_weight.detach() @ last).to("cpu", torch.float64)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            probabilities, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
            mass = probabilities.cumsum(-1)
            nucleus = mass[: int((mass < top_p).sum()) + 1]
            draw = torch.rand((), dtype=torch.float64, generator=generator) * nucleus[-1]
            # rounding may put the draw on the very end of the nucleus
            token = int(order[torch.searchsorted(nucleus, draw, right=True).clamp(max=len(nucleus) - 1)])
        if token == end_token:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
