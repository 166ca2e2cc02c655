"""A model on disk in any format: its shape, and its parameters one at a time under our names.

Every format is a list of ``Piece``: a tensor of the format, and the parameters of ours that it holds. Import splits
pieces, export joins them. So a conversion needs no model in memory, and both directions come from one list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.model.transformer import Transformer
from armillary.model.weights.shards import Planned, write_shards
from armillary.model.weights.tokenizer_json import tokenizer_text
from armillary.recipe import ArmillaryError, ModelShape

# A parameter of ours: its name and, of a stack of experts, the index of one.
Ours = tuple[str, int | None]


@dataclass(frozen=True)
class Special:
    """The ids of the tokens that begin, end and fill a text; None if the format does not say."""

    begin: int | None = None
    end: int | tuple[int, ...] | None = None
    fill: int | None = None


class Source(ABC):
    """A model on disk.

    ``shape`` and ``context_length`` (None if not stated) are read at once, and names and sizes of all tensors are
    checked; values are read by ``tensor``. ``dtype`` is the type that most numbers have.
    """

    format: str
    folder: Path
    shape: ModelShape
    dtype: torch.dtype
    context_length: int | None = None
    special: Special = Special()

    @abstractmethod
    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """The parameter (or buffer) ``name`` in its stored type; of a stack, only one ``expert`` if given."""

    def tokenizer_files(self) -> Mapping[str, str]:
        """The tokenizer that the weights file itself holds, as text by file name; empty if the format holds none.

        Raises:
            UsageError: it holds one that is not read here.
            DamagedFileError: it is torn.
        """
        return {}

    def tokenizer_text(self) -> str | None:
        """The text of the model's ``tokenizer.json``: of the weights file, or of the folder; None without a tokenizer.

        Raises:
            UsageError, DamagedFileError: as ``tokenizer_files`` and ``tokenizer_json.tokenizer_text``.
        """
        return self.tokenizer_files().get("tokenizer.json") or tokenizer_text(self.folder)


class InMemory(Source):
    """A model in memory."""

    format = "memory"

    def __init__(self, model: Transformer) -> None:
        self.shape, self.folder = model.shape, Path()
        self._state: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict().items()}
        self.dtype = model.output_weight.dtype

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        return self._state[name] if expert is None else self._state[name][expert]


@dataclass(frozen=True)
class Piece:
    """A tensor of a format: its name and size there, and the parameters of ours that it holds.

    ``join`` makes it from ours and ``split`` takes it apart; by default it is the one parameter unchanged. A piece
    that holds none of ours is zeros.
    """

    name: str
    size: tuple[int, ...]
    ours: tuple[Ours, ...]
    join: Callable[[Sequence[Tensor]], Tensor] | None = None
    split: Callable[[Tensor], Sequence[Tensor]] | None = None

    def take(self, source: Source) -> Tensor:
        """The values of this piece from the parameters of ``source``."""
        if not self.ours:
            return torch.zeros(self.size, dtype=source.dtype)
        parts = [source.tensor(name, expert) for name, expert in self.ours]
        return parts[0] if self.join is None else self.join(parts)


class Pieces:
    """Finds our parameters in the pieces of a format."""

    def __init__(self, pieces: Sequence[Piece], read: Callable[[str], Tensor]) -> None:
        self._read = read
        self._holders: dict[Ours, tuple[Piece, int]] = {}
        self._experts: dict[str, int] = {}
        for piece in pieces:
            for number, (name, expert) in enumerate(piece.ours):
                self._holders[name, expert] = piece, number
                if expert is not None:
                    self._experts[name] = self._experts.get(name, 0) + 1

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        if expert is None and name in self._experts:
            return torch.stack([self.tensor(name, i) for i in range(self._experts[name])])
        piece, number = self._holders[name, expert]
        stored = self._read(piece.name)
        return stored if piece.split is None else piece.split(stored)[number]


@dataclass(frozen=True)
class Export:
    """What a format writes into a new folder: JSON documents by name, and tensors.

    ``write`` puts the tensors into the folder and reports the bytes of each.
    """

    documents: Mapping[str, Any]
    tensors: Sequence[Planned]
    write: Callable[[Path, Sequence[Planned], Callable[[int], None]], None] = write_shards


def plan(pieces: Sequence[Piece], source: Source, dtype: torch.dtype) -> list[Planned]:
    """``pieces`` of ``source``, each computed in ``dtype`` when it is written.

    Computing one raises ArmillaryError if a value is NaN, infinite, or too large for ``dtype``.
    """

    def maker(piece: Piece) -> Callable[[], Tensor]:
        def make() -> Tensor:
            values = piece.take(source)
            cast = values.to(dtype)
            if not torch.isfinite(cast).all():
                if torch.isfinite(values).all():
                    name = str(dtype).removeprefix("torch.")
                    raise ArmillaryError(
                        f"{source.folder}: {piece.name} has values that {name} cannot represent; use bfloat16 or "
                        "float32"
                    )
                raise ArmillaryError(
                    f"{source.folder}: {piece.name} has values that are NaN or infinite; the model is broken. "
                    "Fetch it again, or use an earlier checkpoint"
                )
            return cast

        return make

    return [Planned(piece.name, piece.size, dtype, maker(piece)) for piece in pieces]


def parameter_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The sizes of all parameters of a model by name, in the order of the model."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Transformer(shape).named_parameters()}


def build(source: Source) -> Transformer:
    """The model of ``source`` in fp32 on the CPU; half-precision weights are widened, which is exact."""
    with torch.device("meta"):
        model = Transformer(source.shape)
    state = {}
    for name in model.state_dict():
        values = source.tensor(name)
        # a copy, so that the file can be unmapped
        state[name] = values.float() if values.dtype != torch.float32 else values.clone()
    model.load_state_dict(state, assign=True)
    return model
