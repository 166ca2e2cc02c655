"""The order of the data: a pure function of (seed, step, position in the batch) (contract 2).

Sample ``g = step * batch_sequences + position`` of a run gets a domain, a draw of that domain, and a window:

1. *Domain.* Within a phase of the mixture, sample ``r`` gets ``u = (A r + b) mod 2^32`` with ``A = 2^32 / phi`` (odd)
   and ``b`` keyed by seed and phase; the weights cut ``[0, 2^32)`` into intervals, and the one ``u`` falls into is the
   domain. Such a sequence is evenly spread over any stretch of samples (Weyl 1916; Knuth, TAOCP 3, section 6.4), so
   every batch is close to the mixture.
2. *Draw.* How many earlier samples of the phase fell below a boundary is a sum of floors, which a Euclid-like
   algorithm gives in O(log) (Graham, Knuth, Patashnik, Concrete Mathematics, section 3.5). Draws of earlier phases
   are added. So draw ``n`` of a domain is known without walking through the run.
3. *Window.* Draw ``n`` of a domain with ``W`` windows is window ``permutation(n mod W)`` of epoch ``n // W``, by a
   permutation keyed by seed, domain and epoch: every window once before any repeats.

The key of a phase depends on its index only: mixtures that agree on all phases before a step give the same batches
before that step, whatever comes later.

Trade-offs: evenly spread is not random, so the domain of a sample can be guessed from the one before, which training
does not notice; the permutation is a small Feistel network, good enough to shuffle and not a cipher.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.permutation import keyed_hash, permutation_keys, permute
from armillary.corpus.shards import Corpus
from armillary.recipe import MixturePhase, UsageError

MODULUS = 1 << 32
MULTIPLIER = 2_654_435_769  # 2^32 / golden ratio, odd


class TokenOrder:
    """The batches of a run over ``corpus``, by ``mixture`` (phases with growing start steps, the first at 0).

    Raises:
        UsageError: a weight for a domain that the corpus lacks or only examines, or a drawn domain with less text
            than one window.
    """

    def __init__(
        self,
        corpus: Corpus,
        mixture: Sequence[MixturePhase],
        *,
        seed: int,
        context_length: int,
        batch_sequences: int,
    ) -> None:
        self.corpus = corpus
        self.seed = seed
        self.context_length = context_length
        self.batch_sequences = batch_sequences
        self._domains = corpus.training_domains
        for phase in mixture:
            _check_domains(phase, corpus)
        drawn = {name for phase in mixture for name, weight in phase.weights.items() if weight > 0}
        # A plain view: slicing a memmap costs several times as much.
        self._tokens = {name: np.asarray(corpus.train_tokens(name)) for name in self._domains if name in drawn}
        # Domains that are never drawn may be shorter than a window; 1 keeps the arithmetic defined for them.
        self._windows = np.array(
            [corpus.windows(name, context_length) if name in drawn else 1 for name in self._domains], dtype=np.int64
        )
        self._starts = [phase.start_step * batch_sequences for phase in mixture]
        self._bounds = [_boundaries([phase.weights.get(name, 0.0) for name in self._domains]) for phase in mixture]
        self._offsets = [keyed_hash(seed, "phase", index) % MODULUS for index in range(len(mixture))]
        # Draws of each domain before each phase.
        self._before = [np.zeros(len(self._domains), dtype=np.int64)]
        for index, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._before.append(self._before[-1] + self._draws_within(index, end - start))
        self._keys: dict[tuple[int, int], list[int]] = {}

    def batch(self, step: int) -> NDArray[np.int64]:
        """Tokens of ``step`` (0-based), shape [batch_sequences, context_length + 1]."""
        first = step * self.batch_sequences
        phase = self._phase(first)
        start = first - self._starts[phase]
        u = (np.arange(start, start + self.batch_sequences, dtype=np.uint64) * np.uint64(MULTIPLIER)) % np.uint64(
            MODULUS
        )
        u = (u + np.uint64(self._offsets[phase])) % np.uint64(MODULUS)
        domain = np.searchsorted(self._bounds[phase], u, side="right")
        draw = np.empty(self.batch_sequences, dtype=np.int64)
        drawn_before = self._before[phase] + self._draws_within(phase, start)
        for index in np.unique(domain):
            rows = np.flatnonzero(domain == index)
            draw[rows] = drawn_before[index] + np.arange(len(rows))
        windows = self._windows[domain]
        epoch, position = np.divmod(draw, windows)
        keys = np.array([self._epoch_keys(int(d), int(e)) for d, e in zip(domain, epoch, strict=True)], dtype=np.uint64)
        window = permute(position, windows, keys)
        batch = np.empty((self.batch_sequences, self.context_length + 1), dtype=np.int64)
        for row, (index, w) in enumerate(zip(domain.tolist(), window.tolist(), strict=True)):
            tokens = self._tokens[self._domains[index]]
            begin = min(w * self.context_length, len(tokens) - self.context_length - 1)
            batch[row] = tokens[begin : begin + self.context_length + 1]
        return batch

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each training domain in the first ``steps`` steps, known exactly without reading any text."""
        if steps == 0:
            return dict.fromkeys(self._domains, 0.0)
        samples = steps * self.batch_sequences
        phase = self._phase(samples - 1)
        draws = self._before[phase] + self._draws_within(phase, samples - self._starts[phase])
        return {name: float(n / w) for name, n, w in zip(self._domains, draws, self._windows, strict=True)}

    def _phase(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def _draws_within(self, phase: int, samples: int) -> NDArray[np.int64]:
        """How many of the first ``samples`` samples of a phase fall to each domain."""
        offset = self._offsets[phase]
        # u < c exactly where floor((A r + b) / m) - floor((A r + b - c) / m) is 1; m is added to keep all positive.
        base = samples + floor_sum(samples, MODULUS, MULTIPLIER, offset)
        below = [
            base - floor_sum(samples, MODULUS, MULTIPLIER, offset + MODULUS - int(bound))
            for bound in self._bounds[phase]
        ]
        edges = np.array([0, *below, samples], dtype=np.int64)
        return edges[1:] - edges[:-1]

    def _epoch_keys(self, domain: int, epoch: int) -> list[int]:
        found = self._keys.get((domain, epoch))
        if found is None:
            if len(self._keys) > 4096:
                self._keys.clear()
            found = permutation_keys(self.seed, self._domains[domain], epoch)
            self._keys[domain, epoch] = found
        return found


def _check_domains(phase: MixturePhase, corpus: Corpus) -> None:
    for name, weight in phase.weights.items():
        if name not in corpus.domains:
            nearest = difflib.get_close_matches(name, corpus.training_domains, n=1, cutoff=0.5)
            hint = f"nearest: '{nearest[0]}'" if nearest else f"there are: {', '.join(corpus.training_domains)}"
            raise UsageError(f"mixture from step {phase.start_step}: the corpus has no domain '{name}'; {hint}")
        if weight > 0 and name not in corpus.training_domains:
            raise UsageError(
                f"mixture from step {phase.start_step}: domain '{name}' is only examined (train: false) and cannot "
                f"have weight {weight:g}; set 'train: true' in the corpus or its weight to 0"
            )


def _boundaries(weights: list[float]) -> NDArray[np.uint64]:
    """Inner boundaries in [0, 2^32] of the intervals of the domains: one fewer than weights.

    Integer shares by largest remainder, so that they sum to 2^32 exactly; a domain of weight 0 gets an empty interval.
    """
    total = sum(weights)
    exact = [weight / total * MODULUS for weight in weights]
    shares = [int(x) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    # Rounding of floats may leave the sum short by a few; only domains with weight take part.
    order = [i for i in order if weights[i] > 0]
    for i in range(MODULUS - sum(shares)):
        shares[order[i % len(order)]] += 1
    return np.cumsum(np.array(shares[:-1], dtype=np.uint64), dtype=np.uint64)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum over r in [0, n) of floor((a r + b) / m), for n, a, b >= 0 and m > 0; exact, in O(log m)."""
    total = 0
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            break
        # Count the lattice points under the line by columns instead of rows.
        n, b = divmod(top, m)
        m, a = a, m
    return total
