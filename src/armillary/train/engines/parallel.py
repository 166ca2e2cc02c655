"""The engine over many ranks: a program of ``parallel``, its optimizer, and their pieces in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from armillary.corpus import Batch
from armillary.model import adapter_values, adapters, is_adapter
from armillary.optim import LocalOptimizer
from armillary.parallel import Program
from armillary.recipe import DIMENSIONS, Layout, RunSpec
from armillary.resilience import Judge
from armillary.train.checkpoint import AsyncSaver, CheckpointReader, Piece, PieceReader, whole
from armillary.train.engines.engine import ADAPTER, outline
from armillary.train.errors import BadStepError

# The mesh dimensions that ``parallel`` has flattened into one.
_FLATTENED = {"shard": ("dp_shard", "ep", "cp"), "experts_shard": ("dp_shard", "cp", "tp")}


class ParallelEngine:
    """This rank's part of a program."""

    def __init__(
        self,
        spec: RunSpec,
        layout: Layout,
        device: torch.device,
        saver: AsyncSaver,
        notice: Callable[[int, str, str], None] = lambda step, found, how: None,
    ) -> None:
        self.judge = Judge()
        self.notice = notice  # called after a repaired fault: finished steps, fault, repair
        self.spec, self.layout, self.device, self.saver = spec, layout, device, saver
        self.described = {"ranks": layout.ranks, "layout": layout.model_dump(mode="json", exclude_defaults=True)}
        outline(spec)  # a stage of a pipeline cannot see that no matrix has the name of a target
        self.program = Program(spec, layout, device)
        self.compiles = self.program.compiles
        self.optimizer = LocalOptimizer(self.program.named_parameters(), spec)
        # The memory of the weights is never reallocated; the optimizer also relies on this, since it works in place.
        weights = {name: tensor for part in self.program.parts for name, tensor in part.state_dict().items()}
        self._tensors = weights
        self._weights = {name: _piece(tensor) for name, tensor in weights.items()}
        self._own = self._owned(weights)

    def step(self, step: int, batch: Batch[Tensor]) -> tuple[Tensor, ...]:
        """One optimizer step on the global batch; the program computes this rank's part."""
        for part in self.program.parts:
            part.turn_as(self.spec.during(step).model)
        loss, norm = self._gradients(batch)
        # Reading the value would stall an accelerator; there the loop checks the losses when it fetches them, and a
        # gradient that is not finite changes neither weights nor state.
        if self.device.type == "cpu" and (wrong := self.judge.look(step + 1, loss.item(), norm.item())) is not None:
            loss, norm = self._gradients(batch)
            again = self.judge.look(step + 1, loss.item(), norm.item())
            if again is not None:
                raise BadStepError(step + 1, again)
            found = "spike" if wrong.finite else "not finite"
            self.notice(step, found, f"{wrong.what}; recomputed, the step is normal")
        self.optimizer.step(self.spec.lr(step), norm if self.device.type != "cpu" else None)
        self.program.balance()
        return loss, norm, *self.program.measured

    def _gradients(self, batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
        for _, parameter in self.program.named_parameters():
            parameter.grad = None
        return self.program.gradients(batch), self.program.clip(self.spec.optimizer.grad_clip)

    def check_copies(self) -> str | None:
        """Compare a checksum of weights and optimizer state over the ranks of ``dp_replicate``, which hold copies.

        Only ranks with differing values return a description.
        """
        if self.layout.dp_replicate == 1:
            return None
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        named = self.program.named_parameters()
        frozen = [self._weights[name].values for name, parameter in named if not parameter.requires_grad]
        own = torch.stack([checksum(tensor) for tensor in (*self.optimizer.local.values(), *frozen, *states)])
        ends = torch.cat((own, -own))
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self.program.grid.group("dp_replicate"))
        most, least = ends.chunk(2)
        if torch.equal(most, -least):
            return None
        return "the copies of the weights or of the optimizer's state differ between data-parallel ranks"

    def entropy(self, step: int, windows: Tensor) -> float:
        """Mean cross entropy in nats over ``windows`` [n, T + 1], with the positions used at ``step``."""
        for part in self.program.parts:
            part.turn_as(self.spec.during(step).model)
        return self.program.entropy(windows).item()

    def pieces(self) -> dict[str, Piece]:
        """The pieces that this rank writes: of copies on several ranks, each writes its share."""
        pieces = {}
        for name, piece in self._weights.items():
            if name not in self._own:
                continue
            pieces[name] = piece
            for key, value in self.optimizer.state.get(name, {}).items():
                like = value.shape == piece.values.shape
                if like:
                    pieces[f"{name}/{key}"] = Piece(value, piece.size, piece.offset)
                elif not any(piece.offset):  # state of the whole parameter, such as a step count
                    pieces |= whole({f"{name}/{key}": value})
        return {name: piece for name, piece in pieces.items() if piece.values.numel()}

    def draw_weights(self) -> None:
        """Draw initial weights from the seed of the run."""
        self.program.init_weights()

    def load_weights(self, reader: PieceReader) -> None:
        """Read this rank's part of each weight, and draw adapters; the optimizer keeps its initial state."""
        for name, piece in self._weights.items():
            if is_adapter(name):
                drawn = adapter_values(name, piece.size, self.spec.seed)
                piece.values.copy_(drawn[within(piece)])
            else:
                piece.values.copy_(reader.read(name, tuple(piece.values.shape), piece.offset))

    def load(self, reader: CheckpointReader) -> None:
        """Read this rank's part of the weights and optimizer state from a checkpoint."""
        for name, values, offset in self._parts():
            values.copy_(reader.read(name, tuple(values.shape), offset))

    def needed(self, reader: PieceReader) -> set[str]:
        """The files of a checkpoint that ``load`` reads on this rank."""
        found = [reader.files(name, tuple(values.shape), offset) for name, values, offset in self._parts()]
        return set().union(*found)

    def _parts(self) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
        """This rank's part of each tensor in a checkpoint: its name, its values and their offset."""
        for name, piece in self._weights.items():
            yield name, piece.values, piece.offset
            for key, value in self.optimizer.state.get(name, {}).items():
                like = value.shape == piece.values.shape
                yield f"{name}/{key}", value, piece.offset if like else (0,) * value.ndim

    def save_weights(self, path: Path) -> None:
        """Write the weights with merged adapters as one safetensors file, and the adapters beside it as ``ADAPTER``."""
        own = {name: piece for name, piece in self.pieces().items() if name in self._weights}
        if self.spec.adapter is not None:
            added = {name: piece for name, piece in own.items() if is_adapter(name)}
            self.saver.save_weights(added, path.with_name(ADAPTER))
            own = {name: piece for name, piece in own.items() if name not in added} | self._merged(own)
        self.saver.save_weights(own, path)

    @torch.no_grad()
    def _merged(self, own: Mapping[str, Piece]) -> dict[str, Piece]:
        """Of the pieces ``own`` those of adapted matrices, with their part of the adapter's product added.

        All ranks must call this: the adapters are gathered, one matrix at a time.
        """
        merged = {}
        for part in self.program.parts:
            for matrix, module in adapters(part):
                a, b = (full(self._tensors[f"{matrix}.{name}"]) for name in ("lora_a", "lora_b"))
                if (piece := own.get(f"{matrix}.weight")) is not None:
                    rows, columns = within(piece)
                    values = piece.values + module.factor * (b[rows] @ a[:, columns])
                    merged[f"{matrix}.weight"] = Piece(values, piece.size, piece.offset)
        return merged

    def _owned(self, weights: dict[str, Tensor]) -> set[str]:
        """The weights of which this rank writes its part: the ranks that hold copies of it divide the bytes."""
        before, owned = 0, set()
        total = sum(tensor.numel() for tensor in weights.values())
        for name, tensor in weights.items():
            number, copies = self._copy(tensor)
            if before * copies // total == number:
                owned.add(name)
            before += tensor.numel()
        return owned

    def _copy(self, tensor: Tensor) -> tuple[int, int]:
        """The number of this rank among those that hold the same part of the tensor, and how many these are."""
        divided = {"pp"}
        if isinstance(tensor, DTensor):
            for name, placement in zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True):
                if not placement.is_replicate():  # any kind of shard
                    divided |= set(_FLATTENED.get(name, (name,)))
        number, copies = 0, 1
        for name in DIMENSIONS:
            if name not in divided:
                size = self.program.grid.size(name)
                number, copies = number * size + self.program.grid.rank(name), copies * size
        return number, copies


def within(piece: Piece) -> tuple[slice, ...]:
    """The place of a piece in its whole tensor."""
    return tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.values.shape, strict=True))


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank that holds a part of it."""
    whole_tensor: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole_tensor


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits as integers (int64, no dimensions): one changed bit changes it.

    Pairs of 32-bit numbers are added as 64-bit ones, which is 15 times as fast as a sum that widens each number.
    """
    bits = tensor.contiguous().view(-1).view(torch.int32)
    if bits.storage_offset() % 2:  # an int64 begins at an even place, and the pairs must not depend on the place
        bits = bits.clone()
    end = len(bits) // 2 * 2
    return bits[:end].view(torch.int64).sum() + bits[end:].sum()


def _piece(tensor: Tensor) -> Piece:
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), tuple(tensor.shape), (0,) * tensor.ndim)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(tensor.to_local().detach(), tuple(tensor.shape), tuple(offset))
