"""The optimizers of a run: AdamW, or Muon for the matrices of the layers, over whole parameters or shards of them.

Both work on plain tensors. Where a parameter is a DTensor, ``LocalOptimizer`` takes this rank's part of it, and its
gradient's, without copying: a step dispatches nothing through DTensor, and costs what it costs on one process.

AdamW treats each number by itself, so shards need nothing more. Muon orthogonalises whole matrices. Where they are in
parts, each is brought together on one rank, which orthogonalises it and hands the parts of the result back: all
matrices are dealt out over the ranks that hold parts of them, copies included, so no work is done twice. Two all-to-all
exchanges, in bf16, carry what one step needs; that is the precision in which Newton-Schulz iterates, so they round
nothing that one process would not round.

Trade-offs: the exchange waits for the whole backward pass, and the gathered matrices of a rank (its share of the model,
in bf16) are in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.optim.adamw import adamw

from armillary.model import Role, Transformer, model_roles, orthogonalised, width_factors
from armillary.recipe import RunSpec

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")

# Of the quintic iteration (Jordan et al. 2024, as torch.optim.Muon has it).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


def build_optimizer(model: Transformer, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over the parameters of a model on one device, for the rate see ``set_lr``."""
    return _build(dict(model.named_parameters()), {}, spec, model.roles)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have the next steps taken at ``lr``, times what the width transfer makes of it for each group (``lr_factor``)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


class LocalOptimizer:
    """The optimizer of ``spec`` over this rank's part of each of ``named`` parameters of its model.

    ``roles`` are those of the parameters where they are not the model's.

    ``local`` has that part of every parameter, and ``state`` the optimizer's tensors beside it, both by name. They are
    there from the beginning, and are what a checkpoint writes and what is read into in place. AdamW has ``step`` (no
    dimensions), ``exp_avg`` and ``exp_avg_sq``, Muon ``momentum_buffer``; all but ``step`` are shaped as the part is.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], spec: RunSpec, roles: Mapping[str, Role] | None = None
    ) -> None:
        self._parameters = dict(named)
        self.local: dict[str, Tensor] = {
            name: p.to_local().detach() if isinstance(p, DTensor) else p for name, p in self._parameters.items()
        }
        sharded = {self.local[name]: p for name, p in self._parameters.items() if isinstance(p, DTensor)}
        self._optimizer = _build(self.local, sharded, spec, roles or model_roles(spec.model))
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = _initial_state(parameter, group["orthogonalise"])

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors by name of the parameter and key."""
        return {name: self._optimizer.state[parameter] for name, parameter in self.local.items()}

    def step(self, lr: float) -> None:
        """One step at the learning rate ``lr`` along the parameters' gradients, which are gone afterwards."""
        for name, parameter in self._parameters.items():
            if isinstance(parameter, DTensor):
                grad = parameter.grad
                self.local[name].grad = grad.to_local() if isinstance(grad, DTensor) else grad
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self._parameters.values():
            parameter.grad = None


def _initial_state(parameter: Tensor, orthogonalise: bool) -> dict[str, Tensor]:
    if orthogonalise:
        return {"momentum_buffer": torch.zeros_like(parameter)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def _build(
    parameters: Mapping[str, Tensor], sharded: Mapping[Tensor, DTensor], spec: RunSpec, roles: Mapping[str, Role]
) -> torch.optim.Optimizer:
    o = spec.optimizer
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        _, factor = width_factors(roles[name], spec.model, o)
        # The decay of a step is rate times weight_decay: divided by the factor here, it does not move with the width.
        decay = o.weight_decay / factor if roles[name].decay else 0.0
        key = (orthogonalised(roles[name], o), decay, factor)
        groups.setdefault(key, []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_factor": factor, "orthogonalise": orthogonalise}
        for (orthogonalise, decay, factor), members in groups.items()
    ]
    betas = (o.beta1, o.beta2)
    if o.kind == "adamw":
        return torch.optim.AdamW(described, lr=o.lr, betas=betas, eps=o.eps, fused=True)
    return _Muon(described, sharded, {"lr": o.lr, "betas": betas, "eps": o.eps, "momentum": o.momentum})


class _Muon(torch.optim.Optimizer):
    """Muon for the groups to ``orthogonalise``, AdamW for the others.

    As ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, which takes whole matrices only. A parameter of three
    dimensions is a stack of matrices.
    """

    def __init__(
        self, groups: list[dict[str, Any]], sharded: Mapping[Tensor, DTensor], defaults: dict[str, Any]
    ) -> None:
        super().__init__(groups, defaults)
        matrices = [p for group in self.param_groups if group["orthogonalise"] for p in group["params"]]
        self._whole = [p for p in matrices if p not in sharded]
        by_mesh: dict[DeviceMesh, list[Tensor]] = {}
        for parameter in matrices:
            if parameter in sharded:
                by_mesh.setdefault(sharded[parameter].device_mesh, []).append(parameter)
        self._exchanges = [
            (members, _Exchange(mesh, [sharded[p] for p in members])) for mesh, members in by_mesh.items()
        ]
        self._sides = {p: sharded.get(p, p).shape[-2:] for p in matrices}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        directions: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            if group["orthogonalise"]:
                directions.update(self._momentum(group))
            else:
                self._adamw(group)
        for parameter in self._whole:
            directions[parameter] = _orthogonal(directions[parameter])
        for members, exchange in self._exchanges:
            directions.update(zip(members, exchange([directions[p] for p in members]), strict=True))
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonalise"] else ():
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * math.sqrt(max(self._sides[parameter]))
                parameter.add_(directions[parameter], alpha=-group["lr"] * size)

    def _momentum(self, group: dict[str, Any]) -> dict[Tensor, Tensor]:
        """Take the gradients in; returns, in bf16, what is to be orthogonalised."""
        # all ranks exchange the same matrices, so one without a gradient (of an expert without tokens) counts as zero
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group["params"]]
        for parameter in group["params"]:
            if not self.state[parameter]:
                self.state[parameter] = _initial_state(parameter, True)
        momenta = [self.state[p]["momentum_buffer"] for p in group["params"]]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        return {p: update.bfloat16() for p, update in zip(group["params"], ahead, strict=True)}

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = _initial_state(parameter, False)
        steps, means, squares = ([self.state[p][key] for p in parameters] for key in _ADAMW_STATE)
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [p.grad for p in parameters], means, squares, [], steps,
            fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def _orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to [rows, columns] in bf16, nearly; of a stack of them, each by itself."""
    if matrices.ndim > 2:
        return torch.stack([_orthogonal(matrix) for matrix in matrices])
    turned = matrices.shape[0] > matrices.shape[1]
    x = matrices.mT if turned else matrices
    x = x / x.norm().clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if turned else x


@dataclass(frozen=True)
class _Part:
    """Where a rank's part of one matrix lies: ``inside`` its own part of the parameter, ``within`` the matrix."""

    rank: int
    inside: tuple[int | slice, ...]
    within: tuple[slice, slice]

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.within
        return rows.stop - rows.start, columns.stop - columns.start


@dataclass(frozen=True, eq=False)
class _Matrix:
    """One matrix of the parameter number ``parameter``, and the rank that orthogonalises it.

    ``sources`` are those of its ``parts`` of which it is put together: some may lie on several ranks.
    """

    parameter: int
    size: tuple[int, int]
    parts: tuple[_Part, ...]
    sources: tuple[_Part, ...]
    owner: int


class _Exchange:
    """Orthogonalises parameters that the ranks of ``mesh`` hold in parts: each rank its share of the matrices."""

    def __init__(self, mesh: DeviceMesh, parameters: list[DTensor]) -> None:
        flat = mesh if mesh.ndim == 1 else mesh._flatten()
        self._group, self._rank, ranks = flat.get_group(), flat.get_local_rank(), flat.size()
        matrices = self._deal_out(mesh, parameters, ranks)
        # what goes to each rank and comes from each, in an order that both ends know
        everyone, own = range(ranks), self._rank
        self._owned = [m for m in matrices if m.owner == own]
        self._gives = [
            [(m, p) for m in matrices if m.owner == to for p in m.sources if p.rank == own] for to in everyone
        ]
        self._takes = [[(m, p) for m in self._owned for p in m.sources if p.rank == of] for of in everyone]
        self._returns = [[(m, p) for m in self._owned for p in m.parts if p.rank == to] for to in everyone]
        self._receives = [
            [(m, p) for m in matrices if m.owner == of for p in m.parts if p.rank == own] for of in everyone
        ]

    def _deal_out(self, mesh: DeviceMesh, parameters: list[DTensor], ranks: int) -> list[_Matrix]:
        """All matrices, the dearest first, each given to the rank that has the least to do."""
        places = [
            [int(i) for i in place] for place in torch.cartesian_prod(*map(torch.arange, mesh.shape)).view(ranks, -1)
        ]
        found = []
        for number, parameter in enumerate(parameters):
            *stack, rows, columns = parameter.shape
            parts: list[list[_Part]] = [[] for _ in range(stack[0] if stack else 1)]
            for rank, place in enumerate(places):
                size, offset = _compute_local_shape_and_global_offset(
                    parameter.shape, mesh.shape, place, parameter.placements
                )
                if not math.prod(size):
                    continue
                above, left = (slice(o, o + n) for o, n in zip(offset[-2:], size[-2:], strict=True))
                for index in range(size[0]) if stack else [0]:
                    inside = (index,) if stack else (slice(None), slice(None))
                    parts[offset[0] + index if stack else 0].append(_Part(rank, inside, (above, left)))
            found += [(rows * columns * min(rows, columns), number, (rows, columns), held) for held in parts]
        load = [0] * ranks
        matrices = []
        for cost, number, sides, held in sorted(found, key=lambda one: -one[0]):
            whole = [part.rank for part in held if part.size == sides]
            owner = min(whole or range(ranks), key=lambda rank: load[rank])
            load[owner] += cost
            same: dict[tuple[int, int], list[_Part]] = {}
            for part in held:
                same.setdefault((part.within[0].start, part.within[1].start), []).append(part)
            # copies lie one after the other (HSDP): the owner takes from its own
            sources = tuple(copies[owner * len(copies) // ranks] for copies in same.values())
            matrices.append(_Matrix(number, sides, tuple(held), sources, owner))
        return matrices

    def __call__(self, updates: list[Tensor]) -> list[Tensor]:
        """Parts of matrices, in bf16, to the same parts of what is orthogonal."""
        given = [[updates[m.parameter][p.inside] for m, p in parts] for parts in self._gives]
        arrived = self._swap(given, self._takes, updates[0])
        whole = {m: updates[0].new_empty(m.size) for m in self._owned}
        for (m, p), piece in arrived:
            whole[m][p.within] = piece
        orthogonal = {m: _orthogonal(matrix) for m, matrix in whole.items()}
        returned = [[orthogonal[m][p.within] for m, p in parts] for parts in self._returns]
        results = [torch.empty_like(update) for update in updates]
        for (m, p), piece in self._swap(returned, self._receives, updates[0]):
            results[m.parameter][p.inside] = piece
        return results

    def _swap(
        self, pieces: list[list[Tensor]], expected: list[list[tuple[_Matrix, _Part]]], like: Tensor
    ) -> list[tuple[tuple[_Matrix, _Part], Tensor]]:
        """Send ``pieces`` to each rank; returns what is ``expected`` of each."""
        coming = [part for parts in expected for part in parts]
        sent = torch.cat([like.new_empty(0), *(piece.reshape(-1) for parts in pieces for piece in parts)])
        arrived = like.new_empty(sum(math.prod(part.size) for _, part in coming))
        dist.all_to_all_single(
            arrived,
            sent,
            [sum(math.prod(part.size) for _, part in parts) for parts in expected],
            [sum(piece.numel() for piece in parts) for parts in pieces],
            group=self._group,
        )
        cut = torch.split(arrived, [math.prod(part.size) for _, part in coming])
        return [(one, piece.view(one[1].size)) for one, piece in zip(coming, cut, strict=True)]
