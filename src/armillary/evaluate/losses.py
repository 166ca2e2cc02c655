"""The loss of two models on the held-out text of a corpus, domain by domain, and the paired difference.

Both models read the same windows of tokens, so the difference of a window has none of the spread between windows.
A quantized model is compared with its source in this way. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional

from armillary.corpus import Corpus, held_out_texts, training_texts
from armillary.evaluate.intervals import Interval, mean_interval
from armillary.evaluate.paired import sign_flip_test
from armillary.model import Source, build, read_tokenizer
from armillary.recipe import UsageError

# Windows of a domain, at most.
WINDOWS = 100
# Logits in memory at a time.
_LOGITS = 2**22
_ALL = "all"
# Windows of each domain that activations are measured on, and their longest length.
_CALIBRATION_WINDOWS, _CALIBRATION_LENGTH = 4, 256


@dataclass(frozen=True)
class DomainLoss:
    """The loss of two models on one domain, in nats per token; ``all`` is every window of every domain.

    Attributes:
        difference: after minus before, with its 95 % interval over windows.
        p_value: two-sided, of the paired sign-flip test over windows.
        windows, tokens: how many both models read.
    """

    domain: str
    before: float
    after: float
    difference: Interval
    p_value: float
    windows: int
    tokens: int


def compare_losses(
    before: Source,
    after: Source,
    corpus: Corpus,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[DomainLoss]:
    """The losses of two models with one tokenizer on the validation text of every domain, and of all together.

    A model whose tokenizer is that of the corpus reads its tokens. Text is encoded again for any other. Windows are as
    long as the context of ``before`` (at most 512 tokens), and at most ``WINDOWS`` of each domain.

    Raises:
        UsageError: a model has no tokenizer and fewer tokens than the corpus, or no domain has a window.
    """
    length = min(before.context_length or 512, 512)
    sets = {name: _windows(before, corpus, name, length) for name in corpus.domains}
    sets = {name: tokens for name, tokens in sets.items() if len(tokens)}
    if not sets:
        raise UsageError(f"{corpus.path}: no domain has validation text for a window of {length} tokens")
    total = 2 * sum(map(len, sets.values()))
    done = 0

    def losses(source: Source) -> dict[str, NDArray[np.float64]]:
        nonlocal done
        model, found = build(source), {}
        for name, tokens in sets.items():
            rows: list[float] = []
            for batch in torch.split(tokens, max(1, _LOGITS // (length * source.shape.vocab_size))):
                with torch.no_grad():
                    logits = model(batch[:, :-1]).transpose(1, 2)
                rows += functional.cross_entropy(logits, batch[:, 1:], reduction="none").double().mean(1).tolist()
                done += len(batch)
                progress(done, total)
            found[name] = np.array(rows)
        return found

    first, second = losses(before), losses(after)
    rows = [_compared(name, first[name], second[name], length) for name in sets]
    if len(rows) > 1:
        whole = [np.concatenate(list(each.values())) for each in (first, second)]
        rows.append(_compared(_ALL, whole[0], whole[1], length))
    return rows


def calibration_tokens(source: Source, corpus: Corpus) -> torch.Tensor:
    """Windows [n, length] of training text in the tokens of ``source``, from every domain that is trained on.

    Raises:
        UsageError: as ``compare_losses``, or there is no window.
    """
    length = min(source.context_length or _CALIBRATION_LENGTH, _CALIBRATION_LENGTH)
    own = _own_tokenizer(source, corpus)
    ids: dict[str, list[int]] = {name: [] for name in corpus.training_domains}
    wanted = _CALIBRATION_WINDOWS * length
    for name in ids:
        if own is None:
            ids[name] = corpus.train_tokens(name)[:wanted].tolist()
    if own is not None:
        for title, text in training_texts(corpus):
            name = title.partition(":")[0]
            if len(ids[name]) < wanted:
                ids[name] += own.encode(text, add_special_tokens=False).ids
    rows = [part[at : at + length] for part in ids.values() for at in range(0, min(len(part), wanted), length)]
    whole = [row for row in rows if len(row) == length]
    if not whole:
        raise UsageError(f"{corpus.path}: no domain has training text for a window of {length} tokens")
    return torch.tensor(whole, dtype=torch.int64)


def _own_tokenizer(source: Source, corpus: Corpus) -> Tokenizer | None:
    """The tokenizer of ``source``; None if the tokens of the corpus are its own.

    Raises:
        UsageError: it cannot be read, or there is none, and the model has fewer tokens than the corpus.
    """
    text = source.tokenizer_text()
    own = None if text is None else read_tokenizer(source.folder, text)
    if own is not None and own.get_vocab() != corpus.tokenizer().get_vocab():
        return own
    if corpus.vocab_size > source.shape.vocab_size:
        raise UsageError(
            f"{source.folder}: has {source.shape.vocab_size} tokens and no tokenizer, but the corpus has "
            f"{corpus.vocab_size} tokens; give a model with its tokenizer"
        )
    return None


def _compared(domain: str, before: NDArray[np.float64], after: NDArray[np.float64], length: int) -> DomainLoss:
    gap = after - before
    reach = max(float(np.abs(gap).max()), 1e-12)
    difference = mean_interval(gap, bounds=(-reach, reach))
    _, p_value = sign_flip_test(gap)
    return DomainLoss(
        domain, float(before.mean()), float(after.mean()), difference, p_value, len(gap), len(gap) * length
    )


def _windows(source: Source, corpus: Corpus, domain: str, length: int) -> torch.Tensor:
    """Windows [n, length + 1] of the validation text of ``domain`` in the tokens of ``source``; n may be 0."""
    own = _own_tokenizer(source, corpus)
    if own is None:
        if len(corpus.validation_tokens(domain)) <= length:
            return torch.empty(0, length + 1, dtype=torch.int64)
        return torch.from_numpy(corpus.validation(domain, length, WINDOWS).tokens)
    end = source.special.end[0] if isinstance(source.special.end, tuple) else source.special.end
    ids: list[int] = []
    for _, text in held_out_texts(corpus, domain):
        ids += [*own.encode(text, add_special_tokens=False).ids, *([] if end is None else [end])]
    count = (len(ids) - 1) // length
    starts = np.unique(np.linspace(0, count - 1, min(count, WINDOWS)).astype(int)).tolist() if count > 0 else []
    rows = [ids[start * length : (start + 1) * length + 1] for start in starts]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, length + 1)
