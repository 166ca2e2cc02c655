"""The mixtures that a recipe's limits allow: floors and ceilings at every step, passes in the whole target run.

Floors and ceilings bound the weights in every phase of a run. ``max_epochs`` bounds how often the target run repeats a
domain over all its tokens: an annealing mixture may take more of a domain than the mixture before it, as long as both
together stay below the bound. Runs of the studies train on the mixtures allowed for
the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from armillary.corpus import Corpus
from armillary.laws import into_bounds
from armillary.recipe import Limits, UsageError

# Tolerance for weights given in decimals, or scaled to sum to 1.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allowed:
    """Bounds of the weights [d] of the training domains, in the corpus's order.

    ``floors`` and ``ceilings`` are the recipe's; ``by_epochs`` is the largest weight over the whole target run that
    repeats a domain ``max_epochs`` times. It is above 1 for a domain with more text than that. ``texts`` are the
    domains' training tokens.
    """

    domains: tuple[str, ...]
    floors: np.ndarray
    ceilings: np.ndarray
    by_epochs: np.ndarray
    texts: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, limits: Limits, tokens: int) -> Allowed:
        """The bounds for a target run of ``tokens``.

        Raises:
            UsageError: the limits leave no mixture.
        """
        domains = tuple(corpus.training_domains)
        texts = np.array([corpus.train_tokens(domain).shape[0] for domain in domains])
        found = cls(
            domains,
            floors=np.array([limits.floors.get(domain, 0.0) for domain in domains]),
            ceilings=np.array([limits.ceilings.get(domain, 1.0) for domain in domains]),
            by_epochs=limits.max_epochs * texts / tokens,
            texts=texts,
        )
        for i in np.flatnonzero(found.floors > found.by_epochs + _ROUNDING):
            raise UsageError(
                f"limits.floors: the floor of '{domains[i]}' is {found.floors[i]:.3g} of the mixture, but its "
                f"{texts[i]:,} tokens, repeated at most {limits.max_epochs:g} times, fill only "
                f"{found.by_epochs[i]:.3g} of a run of {tokens:,} tokens; lower the floor, raise "
                "limits.max_epochs, or add text"
            )
        if found.upper.sum() < 1.0 - _ROUNDING:
            raise UsageError(
                f"limits: the domains together may fill only {found.upper.sum():.0%} of {tokens:,} tokens "
                f"(max_epochs {limits.max_epochs:g}, ceilings {limits.ceilings}); add text, raise "
                "limits.max_epochs, or train on fewer tokens"
            )
        return found

    @property
    def lower(self) -> np.ndarray:
        """Smallest weights [d] of a mixture that is trained on from beginning to end."""
        return self.floors

    @property
    def upper(self) -> np.ndarray:
        """Largest weights [d] of a mixture that is trained on from beginning to end."""
        return np.asarray(np.minimum(np.minimum(self.ceilings, self.by_epochs), 1.0))

    def repeats(self, tokens: int) -> np.ndarray:
        """Whether a run of ``tokens`` on some allowed mixture sees a token of the domain twice, [d] of bool."""
        return np.asarray(self.upper * tokens > self.texts)

    def within(self, vector: np.ndarray) -> np.ndarray:
        """The mixture [d] itself if it is within the limits, else the one with the same proportions within them."""
        return _into(vector, self.lower, self.upper)

    def ending(self, mixture: np.ndarray, wanted: np.ndarray, share: float) -> np.ndarray:
        """The mixture [d] nearest to ``wanted`` for the last ``share`` of the tokens of a run on ``mixture``.

        It may use the text of each domain that the mixture before it leaves; floors and ceilings still apply.
        """
        room = (self.by_epochs - (1 - share) * mixture) / share
        return _into(wanted, self.lower, np.clip(room, self.lower, np.minimum(self.ceilings, 1.0)))


def _into(vector: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    if ((vector >= lower - _ROUNDING) & (vector <= upper + _ROUNDING)).all():
        return vector
    # If the bounds sum to just below 1 because of rounding, no scale reaches 1.
    upper = upper * max(1.0, 1.0 / upper.sum())
    return np.asarray(into_bounds(vector[None], lower, upper)[0])
