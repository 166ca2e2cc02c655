"""The documents of a corpus as text, decoded from its training or validation tokens.

A document of the sources that was cut into parts is several documents here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.shards import Corpus

_AT_ONCE = 256  # documents


def training_texts(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """The training documents, each with its name, ``DOMAIN: document NUMBER`` (from 1)."""
    for domain in corpus.training_domains:
        yield from _texts(corpus, f"{domain}:", corpus.train_tokens(domain))


def held_out_texts(corpus: Corpus, domain: str) -> Iterator[tuple[str, str]]:
    """The validation documents of ``domain``, each with its name, ``DOMAIN: held-out document NUMBER`` (from 1).

    Raises:
        UsageError: the corpus has no such domain.
    """
    yield from _texts(corpus, f"{domain}: held-out", corpus.validation_tokens(domain))


def _texts(corpus: Corpus, name: str, tokens: NDArray[Any]) -> Iterator[tuple[str, str]]:
    tokenizer = corpus.tokenizer()
    ends = np.flatnonzero(tokens == corpus.manifest.end_of_text_id)
    if not len(ends) or ends[-1] != len(tokens) - 1:
        ends = np.append(ends, len(tokens))
    starts = np.concatenate([[0], ends[:-1] + 1])
    for first in range(0, len(ends), _AT_ONCE):
        pieces = zip(starts[first : first + _AT_ONCE], ends[first : first + _AT_ONCE], strict=True)
        texts = tokenizer.decode_batch([tokens[start:stop].tolist() for start, stop in pieces])
        yield from ((f"{name} document {first + i + 1}", text) for i, text in enumerate(texts))
