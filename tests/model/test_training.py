"""What the choice of initial weights is worth, on real text: the standard library's own source."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from armillary.model import Transformer
from armillary.recipe import Family

STEPS, BATCH, CONTEXT, VOCABULARY = 200, 16, 128, 2048


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """[N, CONTEXT + 1] token windows in a fixed random order."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokens = torch.tensor([token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids])
    count = len(tokens) // (CONTEXT + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return tokens[: count * (CONTEXT + 1)].view(count, -1)[order]


def trained_loss(model: Transformer, windows: torch.Tensor, lr: float) -> float:
    """Validation loss after 200 steps: ten of warm-up, the last fifty decaying linearly."""
    validation, training = windows[:128], windows[128:]
    optimizer = torch.optim.AdamW(model.optimizer_groups(0.1), lr=lr, betas=(0.9, 0.95))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10, (STEPS - step) / 50)
        start = step * BATCH % (len(training) - BATCH)
        batch = training[start : start + BATCH]
        objective = model.loss(batch)[0] / batch[:, 1:].numel()
        optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return model.loss(validation)[1].item() / validation[:, 1:].numel()


@pytest.mark.slow
@pytest.mark.parametrize("lr", [4e-3, 8e-3])
def test_the_initial_weights_beat_the_usual_alternatives(windows: torch.Tensor, lr: float) -> None:
    def fan_in(name: str, fan: int) -> float:
        return 1.0 if name in {"output", "embedding"} else 1 / (0.02 * math.sqrt(fan))

    def gpt2(name: str, fan: int) -> float:
        return 0.02 * math.sqrt(fan) if name == "output" else 1.0

    losses = {}
    for label, factor in {"ours": lambda name, fan: 1.0, "1/sqrt(fan_in)": fan_in, "0.02": gpt2}.items():
        model = Transformer(Family().shape(2, VOCABULARY))
        model.init_weights(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(factor(name.split(".")[0], parameter.shape[1]))
        losses[label] = trained_loss(model, windows, lr)
        print(f"lr {lr}: {label}: {losses[label]:.3f} nats per token")
    assert losses["ours"] < losses["1/sqrt(fan_in)"] - 0.05
    assert losses["ours"] < losses["0.02"] - 0.02
