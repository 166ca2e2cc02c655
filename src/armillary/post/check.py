"""Checks before the first step of a fine-tuning: refuses data that would teach something unintended.

- a conversation without a trained token, or a turn whose end is not trained: the model would never stop;
- a conversation that the chat template changes, or that contains special tokens (``Renderer.render``);
- a token outside the model's vocabulary;
- a conversation that is too long, unless the options allow to cut or drop it; such conversations are counted;
- a packed conversation, or a packed answer of a pair, whose loss is not its loss alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from armillary.corpus import Batch, PreferenceOrder, SupervisedOrder
from armillary.model import Transformer, document_starts, without_ignored
from armillary.post.formats import Conversation
from armillary.post.template import ChangedTurnsError, Rendered, Renderer
from armillary.recipe import UsageError

TooLong = Literal["refuse", "cut", "drop"]
_MOST_PROBLEMS = 10
_BATCHES = 3  # compared packed and alone
_TOLERANCE = 2e-4  # packed and single losses differ by rounding of sums


@dataclass
class Counts:
    """Counts for a file of conversations.

    ``cut`` is the number of conversations that lost turns at their end, and ``turns_cut`` the number of these turns.
    ``dropped`` conversations were still longer than a sequence. ``trained`` of the ``tokens`` are in the loss;
    ``longest`` is the longest conversation in tokens. ``apart`` conversations were split into one sample per answer,
    and each sample counts as a conversation.
    """

    conversations: int = 0
    turns: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    cut: int = 0
    turns_cut: int = 0
    dropped: int = 0
    apart: int = 0

    def to_json(self) -> dict[str, int]:
        """The counts as plain data."""
        return asdict(self)


@dataclass
class Checked:
    """Renders conversations, counts them, and refuses wrong ones.

    ``longest`` is the token limit of a conversation; ``too_long`` says how to treat longer ones: ``cut`` removes whole
    turns from the end until they fit, ``drop`` leaves them out.
    """

    renderer: Renderer
    longest: int
    vocab_size: int
    too_long: TooLong = "refuse"
    counts: Counts = field(default_factory=Counts)

    def of(self, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
        """Yield the rendered conversations to train on.

        Raises:
            UsageError: a conversation is wrong (raised at the end; names the first ones by file and line), or none is
                left.
        """
        problems, wrong, kept = list[str](), 0, 0
        for conversation in conversations:
            try:
                samples = [self._fitting(one) for one in self._samples(conversation)]
            except UsageError as error:
                wrong += 1
                if wrong <= _MOST_PROBLEMS:
                    problems.append(str(error))
                continue
            for rendered in samples:
                if rendered is not None:
                    kept += 1
                    yield rendered
        if wrong:
            more = [f"… and {wrong - _MOST_PROBLEMS} more conversations"] if wrong > _MOST_PROBLEMS else []
            raise UsageError("\n".join([*problems, *more]))
        if not kept:
            raise UsageError(
                f"all {self.counts.dropped} conversations have more than {self.longest} tokens and were dropped; raise "
                "--context-length"
            )

    def _samples(self, conversation: Conversation) -> list[Rendered]:
        """The conversation, or one sample per answer if the template renders earlier answers differently."""
        try:
            samples = [self.renderer.render(conversation)]
        except ChangedTurnsError:
            samples = self.renderer.render_apart(conversation)
            self.counts.apart += 1
        for rendered in samples:
            check_rendered(rendered, self.renderer.end, self.vocab_size)
        return samples

    def _fitting(self, rendered: Rendered) -> Rendered | None:
        """The sample, or the part that fits into a sequence; None if nothing fits."""
        counts = self.counts
        size, turns = len(rendered.tokens), len(rendered.turns)
        if size > self.longest:
            if self.too_long == "refuse":
                raise UsageError(
                    f"{rendered.where}: has {size} tokens, but a sequence has {self.longest} (context_length + 1); "
                    "raise --context-length, or give --too-long cut (turns from the end) or drop"
                )
            fitting = [turn for turn in rendered.turns if turn.stop <= self.longest] if self.too_long == "cut" else []
            if not fitting:
                counts.dropped += 1
                return None
            counts.cut += 1
            counts.turns_cut += turns - len(fitting)
            end = fitting[-1].stop
            rendered = Rendered(rendered.tokens[:end], rendered.trained[:end], tuple(fitting), rendered.where)
        counts.conversations += 1
        counts.turns += len(rendered.turns)
        counts.tokens += len(rendered.tokens)
        counts.trained += sum(rendered.trained)
        counts.longest = max(counts.longest, len(rendered.tokens))
        return rendered


def check_rendered(rendered: Rendered, end: int, vocab_size: int) -> None:
    """Check the loss mask of one conversation, independent of its origin.

    Raises:
        UsageError: no token is trained, a turn is empty or does not end with a trained token, or a token lies outside
            the vocabulary.
    """
    where, tokens = rendered.where, rendered.tokens
    if not any(rendered.trained[1:]):
        raise UsageError(f"{where}: none of its {len(tokens)} tokens is trained on; leave it out")
    outside = [token for token in tokens if not 0 <= token < vocab_size]
    if outside:
        raise UsageError(
            f"{where}: token {outside[0]} is outside the model's vocabulary (0 to {vocab_size - 1}); the "
            "tokenizer belongs to another model"
        )
    for turn in rendered.turns:
        if len(turn) < 2:
            raise UsageError(f"{where}: a turn of the assistant is empty (token {turn.start}); leave it out")
        if not rendered.trained[turn.stop - 1]:
            raise UsageError(
                f"{where}: the token that ends a turn of the assistant (token {turn.stop - 1}) is not in the loss, so "
                "the model would never stop"
            )
    if tokens[-1] != end and not rendered.trained[-1]:
        raise UsageError(f"{where}: its last token is not in the loss; end it with the assistant's turn")


def check_packing(model: Transformer, order: SupervisedOrder | PreferenceOrder, most_tokens: int = 4096) -> int:
    """Compare the loss of each sample in the packed sequences of the first batches with its loss alone.

    A sample is a conversation, or an answer of a pair behind its prompt: the loss of a pair depends on the model only
    through the losses of its two answers. Up to three batches are compared, of each at least one sequence, and
    ``most_tokens`` in all. Returns the number of compared samples.

    Raises:
        UsageError: they differ: attention crosses samples, or positions do not restart. Names the batch, the sample and
            both losses.
    """
    batches = min(_BATCHES, -(-order.sequences // order.batch_sequences))
    rows = max(1, min(most_tokens // (batches * order.context_length), order.batch_sequences))
    compared = 0
    for step in range(batches):
        batch: Batch[Any] = order.batch(step).map(torch.from_numpy)
        for row, names in enumerate(order.samples(step)[:rows]):
            sequence = batch.map(lambda x, row=row: x[row : row + 1].to(model.output_weight.device))  # type: ignore[misc]
            for number, packed, alone in _losses(model, sequence):
                compared += 1
                if abs(packed - alone) > _TOLERANCE * max(1.0, abs(alone)):
                    raise UsageError(
                        f"batch {step + 1}, sequence {row + 1}, {names[number]}: its loss is {packed:.6f} nats packed "
                        f"and {alone:.6f} alone, a difference of {packed - alone:+.6f}; this model does not isolate "
                        "packed samples, so it cannot be trained here"
                    )
    return compared


@torch.no_grad()
def _losses(model: Transformer, sequence: Batch[Tensor]) -> Iterator[tuple[int, float, float]]:
    """The number of each document of a packed ``sequence`` with trained tokens, its loss there and its loss alone."""
    weights, documents = sequence.weights, sequence.documents
    assert weights is not None and documents is not None
    tokens = without_ignored(sequence.tokens, weights)
    features = model.features(tokens[:, :-1], None, document_starts(documents), weights)
    for number in sorted(set(documents[weights > 0].tolist())):
        own = weights.masked_fill(documents != number, 0.0)
        _, packed = model.criterion(features, model.output_weight, tokens[:, 1:], 0.0, own)
        places = (documents[0] == number).nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1]) + 1
        _, alone = model.loss(tokens[:, first : last + 1], 0.0, weights[:, first:last])
        yield number, packed.item(), alone.item()
