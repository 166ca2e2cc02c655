"""The order of the data: a pure function of (seed, step, position in the batch) (contract 2).

Sample ``g = step * batch_sequences + position`` of a run gets a domain, a draw of that domain, and a window:

1. *Domain.* Within a phase of the mixture, sample ``r`` gets ``u = (A r + b) mod 2^32`` with ``A = 2^32 / phi`` (odd)
   and ``b`` keyed by seed and phase. The weights divide ``[0, 2^32)`` into intervals, and the interval that contains
   ``u`` is the domain. Such a sequence is evenly spread over any range of samples (Weyl 1916; Knuth, TAOCP 3, section
   6.4), so every batch is close to the mixture.
2. *Draw.* The number of earlier samples of the phase below a boundary is a sum of floors, which a Euclid-like
   algorithm computes in O(log) (Graham, Knuth, Patashnik, Concrete Mathematics, section 3.5). Draws of earlier phases
   are added. So draw ``n`` of a domain is known without iterating over the run.
3. *Window.* Draw ``n`` of a domain with ``W`` windows is window ``permutation(n mod W)`` of epoch ``n // W``, by a
   permutation keyed by seed, domain and epoch: every window once before any repeats.

A run with ``RunSpec.text_share`` below 1 draws from a part of each domain: at least one window, and that share of the
``W`` windows to the nearest. They are the first of a permutation of all windows keyed by seed and domain, so the parts
of two shares of one seed are nested. Then (3) holds within the part.

A run may change its context length in phases (``RunSpec.lengths``). Windows then have the longest length L. A phase of
length L / k takes the next M long windows of each domain in the order of (3), as many as its draws need. Each long
window holds k short ones. Draw ``n`` of the phase is short window ``n // M`` of long window ``n mod M``: first all
first parts, then all second parts, so that neighbours in the text are far apart. If the long windows cross the end of
an epoch, those before it are used up first. So for any lengths, each token is drawn once per epoch, except for the rest
at the end of a phase: less than one long window per domain.

The key of a phase depends on its index only. Mixtures that agree on all phases before a step give the same batches
before that step, independent of later phases.

Trade-offs: the sequence of domains is evenly spread, not random, and hence predictable, which training does not notice.
Weights are rounded to multiples of 2^-32. The order of short windows depends on how many the phase needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.batch import Batch
from armillary.corpus.permutation import keyed_hash, permute
from armillary.corpus.shards import Corpus
from armillary.recipe import LengthPhase, MixturePhase, RunSpec, UsageError

MODULUS = 1 << 32
MULTIPLIER = 2_654_435_769  # 2^32 / golden ratio, odd


@dataclass(frozen=True)
class _Length:
    """A phase of one length: its first step and sample, its sizes, and the number of short windows in a long one.

    Per domain: ``draws`` before the phase; ``window``, the number of its first long window, counted over all epochs;
    and ``windows``, the number of long windows it takes.
    """

    step: int
    sample: int
    context_length: int
    batch_sequences: int
    parts: int
    draws: NDArray[np.int64]
    window: NDArray[np.int64]
    windows: NDArray[np.int64]


class TokenOrder:
    """The batches of a run over ``corpus``, by ``mixture`` (phases with growing start steps, the first at 0).

    ``lengths`` are phases with other sizes than those at the start; with them the run's ``steps`` must be known.
    ``text_share`` is the share of each domain's windows that is drawn from.

    Raises:
        UsageError: a weight for a domain that the corpus lacks or only examines, or a drawn domain with less text
            than one window of the longest length.
    """

    def __init__(
        self,
        corpus: Corpus,
        mixture: Sequence[MixturePhase],
        *,
        seed: int,
        context_length: int,
        batch_sequences: int,
        lengths: Sequence[LengthPhase] = (),
        steps: int = 0,
        text_share: float = 1.0,
    ) -> None:
        for phase in mixture:
            _check_weights(phase, corpus)
        self.seed = seed
        self._domains = corpus.training_domains
        drawn = {name for phase in mixture for name, weight in phase.weights.items() if weight > 0}
        self._longest = max([context_length, *(phase.context_length for phase in lengths)])
        # A plain view, because slicing a memmap is several times slower. Domains that are never drawn may be shorter
        # than a window; their one window is never read.
        self._tokens = [np.asarray(corpus.train_tokens(name)) for name in self._domains]
        # All windows of each domain, and the number of them that is drawn from.
        self._whole = np.array(
            [corpus.windows(name, self._longest) if name in drawn else 1 for name in self._domains], dtype=np.int64
        )
        self._windows = np.maximum(1, np.round(text_share * self._whole)).astype(np.int64)
        self._parts = np.array([keyed_hash(seed, "part", name) for name in self._domains], dtype=np.uint64)
        # Step and sample at which each length begins, and its sizes.
        begins = [(0, 0, context_length, batch_sequences)]
        for following in lengths:
            step, sample, _, sequences = begins[-1]
            sample += (following.start_step - step) * sequences
            begins.append((following.start_step, sample, following.context_length, following.batch_sequences))
        self._starts = []
        for phase in mixture:
            step, sample, _, sequences = next(begin for begin in reversed(begins) if begin[0] <= phase.start_step)
            self._starts.append(sample + (phase.start_step - step) * sequences)
        self._bounds = [_boundaries([phase.weights.get(name, 0.0) for name in self._domains]) for phase in mixture]
        self._offsets = [keyed_hash(seed, "phase", index) % MODULUS for index in range(len(mixture))]
        self._before = [np.zeros(len(self._domains), dtype=np.int64)]  # draws of each domain before each phase
        for index, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._before.append(self._before[-1] + self._draws_within(index, end - start))
        step, sample, _, sequences = begins[-1]
        ends = [*(begin[1] for begin in begins[1:]), sample + max(steps - step, 0) * sequences]
        self._lengths: list[_Length] = []
        window = np.zeros(len(self._domains), dtype=np.int64)
        for (step, sample, length, sequences), end in zip(begins, ends, strict=True):
            draws, parts = self._draws_before(sample), self._longest // length
            windows = -(-(self._draws_before(end) - draws) // parts)
            self._lengths.append(_Length(step, sample, length, sequences, parts, draws, window, windows))
            window = window + windows
        self._keys: dict[tuple[int, int], int] = {}
        # Draws before the sample after the last batch, cached because the next batch usually needs them.
        self._next = (0, self._before[0])

    @classmethod
    def of(cls, spec: RunSpec, corpus: Corpus) -> Self:
        """The batches of the run ``spec`` over ``corpus``."""
        return cls(
            corpus,
            spec.mixture,
            seed=spec.seed,
            context_length=spec.context_length,
            batch_sequences=spec.batch_sequences,
            lengths=spec.lengths,
            steps=spec.steps,
            text_share=spec.text_share,
        )

    def weight(self, step: int) -> float:
        """Predictions in the batch of ``step``, each of which has the weight 1."""
        length = self._length(step)
        return float(length.batch_sequences * length.context_length)

    def _length(self, step: int) -> _Length:
        return next(length for length in reversed(self._lengths) if length.step <= step)

    def batch(self, step: int) -> Batch[NDArray[Any]]:
        """The batch of ``step`` (0-based): tokens [batch_sequences, context_length + 1] with that step's sizes."""
        length = self._length(step)
        rows = length.batch_sequences
        first = length.sample + (step - length.step) * rows
        phase = self._phase(first)
        start = first - self._starts[phase]
        sample = np.arange(start, start + rows, dtype=np.uint64)
        u = (sample * np.uint64(MULTIPLIER) + np.uint64(self._offsets[phase])) % np.uint64(MODULUS)
        domain = np.searchsorted(self._bounds[phase], u, side="right")
        before = self._next[1] if self._next[0] == first else self._draws(phase, start)
        counts = np.bincount(domain, minlength=len(self._domains))
        # Rows of a domain, in their order, are its next draws.
        by_domain = np.argsort(domain, kind="stable")
        draw = np.empty(rows, dtype=np.int64)
        draw[by_domain] = np.arange(rows) + np.repeat(before - np.cumsum(counts) + counts, counts)
        self._next = (first + rows, before + counts)

        windows = self._windows[domain]
        taken, part = self._taken(length, domain, draw - length.draws[domain])
        epoch, position = np.divmod(length.window[domain] + taken, windows)
        keys = [self._key(d, e) for d, e in zip(domain.tolist(), epoch.tolist(), strict=True)]
        window = permute(position, windows, np.array(keys, dtype=np.uint64))
        whole = self._whole[domain]
        window = np.where(windows < whole, permute(window, whole, self._parts[domain]), window)
        batch = np.empty((rows, length.context_length + 1), dtype=np.int64)
        for row, (d, w, p) in enumerate(zip(domain.tolist(), window.tolist(), part.tolist(), strict=True)):
            tokens = self._tokens[d]
            begin = min(w * self._longest, len(tokens) - self._longest - 1) + p * length.context_length
            batch[row] = tokens[begin : begin + length.context_length + 1]
        return Batch(batch)

    def _taken(
        self, length: _Length, domain: NDArray[np.int64], draw: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The long windows, and the parts of them, of a phase's draws ``draw`` of ``domain``."""
        if length.parts == 1:
            return draw, np.zeros_like(draw)
        every, own, k = self._windows[domain], length.windows[domain], length.parts
        # Long windows left in the epoch in which the phase begins, those of each whole epoch, and the rest.
        left = np.minimum(own, every - length.window[domain] % every)
        epochs, within = np.divmod(draw - left * k, every * k)  # -1 in the first of these
        begins = np.where(epochs < 0, 0, left + epochs * every)
        within = np.where(epochs < 0, draw, within)
        part, taken = np.divmod(within, np.where(epochs < 0, left, np.minimum(every, own - begins)))
        return begins + taken, part

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each training domain in the first ``steps`` steps: exact, without iterating over the steps."""
        total = np.zeros(len(self._domains))
        ends = [*(length.step for length in self._lengths[1:]), steps]
        for length, end in zip(self._lengths, ends, strict=True):
            samples = (min(end, steps) - length.step) * length.batch_sequences
            if samples > 0:
                total += (self._draws_before(length.sample + samples) - length.draws) / length.parts
        return {name: float(n / w) for name, n, w in zip(self._domains, total, self._windows, strict=True)}

    def _phase(self, sample: int) -> int:
        return int(np.searchsorted(self._starts, sample, side="right")) - 1

    def _draws_before(self, sample: int) -> NDArray[np.int64]:
        """Draws of each domain before a sample of the run."""
        phase = self._phase(max(sample - 1, 0))
        return self._draws(phase, sample - self._starts[phase])

    def _draws(self, phase: int, samples: int) -> NDArray[np.int64]:
        """Draws of each domain before sample ``samples`` of a phase, those of earlier phases included."""
        return self._before[phase] + self._draws_within(phase, samples)

    def _draws_within(self, phase: int, samples: int) -> NDArray[np.int64]:
        # u < c exactly where floor((A r + b) / m) - floor((A r + b - c) / m) is 1; m is added to keep all positive.
        offset = self._offsets[phase]
        base = samples + floor_sum(samples, MODULUS, MULTIPLIER, offset)
        below = [
            base - floor_sum(samples, MODULUS, MULTIPLIER, offset + MODULUS - bound)
            for bound in self._bounds[phase].tolist()
        ]
        edges = np.array([0, *below, samples], dtype=np.int64)
        return edges[1:] - edges[:-1]

    def _key(self, domain: int, epoch: int) -> int:
        key = self._keys.get((domain, epoch))
        if key is None:
            if len(self._keys) > 4096:  # a domain of few windows has a new epoch every few draws
                self._keys.clear()
            key = self._keys[domain, epoch] = keyed_hash(self.seed, "epoch", self._domains[domain], epoch)
        return key


def _check_weights(phase: MixturePhase, corpus: Corpus) -> None:
    where = f"mixture from step {phase.start_step}"
    for name, weight in phase.weights.items():
        if name not in corpus.domains:
            nearest = difflib.get_close_matches(name, corpus.training_domains, n=1, cutoff=0.5)
            hint = f"nearest: '{nearest[0]}'" if nearest else f"it has {', '.join(corpus.training_domains)}"
            raise UsageError(f"{where}: the corpus has no domain '{name}'; {hint}")
        if weight > 0 and name not in corpus.training_domains:
            raise UsageError(
                f"{where}: domain '{name}' is only examined (train: false) and cannot have weight {weight:g}; "
                "set 'train: true' in the corpus or its weight to 0"
            )


def _boundaries(weights: list[float]) -> NDArray[np.uint64]:
    """Inner boundaries of the domains' intervals in [0, 2^32], one fewer than domains.

    The intervals have integer lengths by largest remainder, so that they sum to 2^32 exactly; weight 0 gets length 0.
    """
    total = sum(weights)
    exact = [weight / total * MODULUS for weight in weights]
    lengths = [int(length) for length in exact]
    by_remainder = sorted(
        (i for i, weight in enumerate(weights) if weight > 0), key=lambda i: (lengths[i] - exact[i], i)
    )
    for i in range(MODULUS - sum(lengths)):
        lengths[by_remainder[i % len(by_remainder)]] += 1
    return np.cumsum(lengths[:-1], dtype=np.uint64)


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
