"""The score of a model by its held-out loss: the negative loss per trained token of each conversation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from armillary.model import import_hf
from armillary.post.formats import read_conversations
from armillary.post.merge.search import Scores
from armillary.post.template import open_renderer
from armillary.recipe import UsageError


def held_out_loss(examples: Path, template_of: Path) -> tuple[Callable[[Path], Scores], str]:
    """A score for ``Search``, and its name, from conversations in any supported format.

    All models are scored on the tokens rendered by the template in the folder ``template_of``.

    Raises:
        UsageError: no conversations, a conversation that the template refuses, or an unsupported model.
    """
    renderer = open_renderer(template_of)
    rendered = [renderer.render(one) for one in read_conversations(examples)]
    if not rendered:
        raise UsageError(f"{examples}: has no conversation to score models with")

    def score(folder: Path) -> Scores:
        model = import_hf(folder)
        found = []
        with torch.no_grad():
            for one in rendered:
                tokens = torch.tensor([one.tokens])
                weights = torch.tensor([one.trained[1:]], dtype=torch.float32)
                found.append(-float(model.loss(tokens, 0.0, weights)[1]) / sum(one.trained[1:]))
        return np.array(found)

    digest = hashlib.sha256(examples.read_bytes() + renderer.template.encode()).hexdigest()
    return score, f"held-out loss of {digest}"
