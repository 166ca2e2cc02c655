"""The layout of a training run: the number of ranks in each dimension.

A layout decides where numbers are computed, never their values (contract 1). A RunSpec does not contain it, and a run
may resume under a different layout. Names and their order are those of the mesh:

=============  =====================================================================================
``pp``         pipeline: consecutive layers
``dp_replicate``  data, with whole copies of what the other dimensions leave (the outer part of HSDP)
``dp_shard``   data, with parameters, gradients and optimizer state in shards (FSDP)
``ep``         data, and the experts of mixture-of-experts layers are spread over it
``cp``         context: parts of each sequence
``tp``         tensor: parts of each matrix, and of each sequence between them
=============  =====================================================================================

The product is the number of ranks. Neighbouring ranks differ in ``tp`` first, which communicates most.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.errors import FieldError, UsageError
from armillary.recipe.run import RunSpec
from armillary.recipe.shapes import Document
from armillary.recipe.words import counted

DIMENSIONS = ("pp", "dp_replicate", "dp_shard", "ep", "cp", "tp")

# Schedules that split the backward pass of a layer in two: first for its input, later for its weights.
_SPLIT_BACKWARD = ("zero-bubble", "zb-v", "dualpipe-v")

PipelineSchedule = Literal["gpipe", "1f1b", "interleaved", "zero-bubble", "zb-v", "dualpipe-v"]


class Layout(Document):
    """The number of ranks in each dimension, and options of each dimension.

    - Pipeline: ``schedule`` with ``stages_per_rank`` stages on each rank, in rounds over the ranks (``zb-v`` and
      ``dualpipe-v``: two, in a V). ``microbatches`` of one optimizer step (default: twice the stages, and a multiple of
      the run's accumulation). ``layers_per_stage`` for stages of unequal size.
    - Data: ``reshard`` frees gathered parameters after the forward pass.
    - Tensor: ``sequence_parallel`` splits the activations between the matrices by sequence.
    - Context: keys and values arrive by ``ring`` or ``all-gather``.
    - ``recompute``: activations to compute again in the backward pass, only cheap ones (``selective``) or all of a
      layer (``full``).
    """

    pp: int = Field(default=1, ge=1)
    dp_replicate: int = Field(default=1, ge=1)
    dp_shard: int = Field(default=1, ge=1)
    ep: int = Field(default=1, ge=1)
    cp: int = Field(default=1, ge=1)
    tp: int = Field(default=1, ge=1)
    schedule: PipelineSchedule = "1f1b"
    stages_per_rank: int = Field(default=1, ge=1)
    microbatches: int | None = Field(default=None, ge=1)
    layers_per_stage: tuple[int, ...] | None = None
    reshard: bool = True
    sequence_parallel: bool = True
    context: Literal["ring", "all-gather"] = "all-gather"
    recompute: Literal["none", "selective", "full"] = "none"
    compile: bool = False

    @model_validator(mode="after")
    def _pipeline_fits(self) -> Self:
        if self.pp == 1:
            for name in ("stages_per_rank", "microbatches", "layers_per_stage"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise FieldError("applies only to a pipeline, but pp is 1", name)
        elif self.schedule in ("gpipe", "1f1b") and self.stages_per_rank != 1:
            raise FieldError(f"schedule '{self.schedule}' has 1 stage on each rank", "stages_per_rank")
        elif self.is_v and self.stages_per_rank != 2:
            raise FieldError(f"schedule '{self.schedule}' has 2 stages on each rank", "stages_per_rank")
        if self.layers_per_stage is not None:
            self._layers_fit(self.layers_per_stage)
        if self.splits_backward:
            for name, value in (("recompute", self.recompute != "none"), ("compile", self.compile)):
                if value:
                    raise FieldError(
                        f"schedule '{self.schedule}' splits each layer's backward pass in two, which "
                        f"{name} does not support; use schedule '1f1b' or 'interleaved', or leave {name} out",
                        name,
                    )
        return self

    def _layers_fit(self, counts: tuple[int, ...]) -> None:
        if len(counts) != self.stages:
            raise FieldError(
                f"{counted(len(counts), 'number')} for {self.pp} x {self.stages_per_rank} stages",
                "layers_per_stage",
            )
        if min(counts) < 0 or 0 in counts[1:-1]:
            raise FieldError("only the first and the last stage can have no layers", "layers_per_stage")

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the mesh in the order of ``DIMENSIONS``."""
        return tuple(getattr(self, name) for name in DIMENSIONS)

    @property
    def data(self) -> int:
        """Number of parts into which each batch is divided by sequences."""
        return self.dp_replicate * self.dp_shard * self.ep

    @property
    def stages(self) -> int:
        """Number of pipeline stages over all ranks."""
        return self.pp * self.stages_per_rank

    @property
    def is_v(self) -> bool:
        """Whether the ranks' second stages are in reverse order, so that the last stage is on the first rank."""
        return self.schedule in ("zb-v", "dualpipe-v")

    def stage_rank(self, stage: int) -> int:
        """The pipeline rank that holds ``stage``."""
        place = stage % self.pp
        return self.pp - 1 - place if self.is_v and stage >= self.pp else place

    def stage_layers(self, n_layers: int) -> list[range]:
        """The layers of each stage; without ``layers_per_stage`` nearly equal, with the longer ones in the middle.

        Raises:
            UsageError: ``layers_per_stage`` does not sum to ``n_layers``, or there are more stages than layers.
        """
        if self.layers_per_stage is not None:
            counts = list(self.layers_per_stage)
            if sum(counts) != n_layers:
                raise UsageError(
                    f"layers_per_stage sums to {sum(counts)}, but the model has {counted(n_layers, 'layer')}"
                )
        else:
            # the first stage also has the embedding and the last one the output matrix, so extra layers go to the
            # stages between them
            counts = [n_layers // self.stages] * self.stages
            spare = n_layers % self.stages
            start = (self.stages - spare + 1) // 2
            for stage in range(start, start + spare):
                counts[stage] += 1
            if 0 in counts[1:-1]:
                raise UsageError(f"{counted(n_layers, 'layer')} for {counted(self.stages, 'stage')}: use fewer stages")
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]

    @property
    def splits_backward(self) -> bool:
        """Whether the schedule splits each layer's backward pass: first for its input, later for its weights."""
        return self.pp > 1 and self.schedule in _SPLIT_BACKWARD

    def microbatch_count(self, spec: RunSpec) -> int:
        """Micro-batches of one optimizer step of ``spec``: forward and backward passes of each rank."""
        if self.pp == 1:
            return spec.accumulation
        even = math.lcm(spec.accumulation, self.pp)
        return self.microbatches or even * math.ceil(2 * self.stages / even)

    def fewer_replicas(self, spec: RunSpec) -> list[Layout]:
        """Layouts with fewer data replicas that divide ``spec``, the largest first.

        Each replica then has more of the global batch, which stays. Whole copies are dropped before shards are.
        """
        smaller = [self.model_copy(update={"dp_replicate": n}) for n in range(self.dp_replicate - 1, 0, -1)]
        last = self.model_copy(update={"dp_replicate": 1})
        smaller += [last.model_copy(update={"dp_shard": n}) for n in range(self.dp_shard - 1, 0, -1)]
        return [layout for layout in smaller if layout._divides(spec)]

    def _divides(self, spec: RunSpec) -> bool:
        try:
            self.check(spec)
        except UsageError:
            return False
        return True

    def refuse_others(self, ranks: int) -> None:
        """Check that the layout has this number of ranks.

        Raises:
            UsageError: the layout has another number of ranks.
        """
        if self.ranks != ranks:
            named = zip(DIMENSIONS, self.sizes, strict=True)
            sizes = " x ".join(f"{name} {size}" for name, size in named if size > 1)
            raise UsageError(
                f"the layout has {counted(self.ranks, 'rank')} ({sizes or 'all 1'}), but {ranks} were requested; start "
                f"{self.ranks}, or change the layout"
            )

    def check(self, spec: RunSpec) -> None:
        """Check that a run can be divided by this layout.

        Raises:
            UsageError: the run cannot be divided; the message has the number that does not divide.
        """
        for start, _, later in spec.stretches()[1:]:
            try:
                self.check(later)
            except UsageError as error:
                raise UsageError(f"lengths: from step {start} on: {error}") from error
        if spec.adapter is not None and self.pp > 1 and not all(self.stage_layers(spec.model.n_layers)):
            raise UsageError(
                "adapter: each stage of the pipeline must have layers, since only their adapters are trained; change "
                "layers_per_stage"
            )
        shape, count = spec.model, self.microbatch_count(spec)
        if count % spec.accumulation:
            raise UsageError(f"microbatches ({count}) must be a multiple of the run's accumulation {spec.accumulation}")
        if self.pp > 1 and self.schedule in ("1f1b", "dualpipe-v") and count < self.stages:
            raise UsageError(f"microbatches ({count}) of schedule '{self.schedule}' must be at least {self.stages}")
        if self.pp > 1 and self.schedule in ("interleaved", "zero-bubble") and count % self.pp:
            raise UsageError(f"microbatches ({count}) of schedule '{self.schedule}' must be a multiple of pp {self.pp}")
        whole = [
            (spec.batch_sequences, self.data * count, "batch_sequences", "data ranks times micro-batches"),
            (shape.n_heads, self.tp, "n_heads", "tp"),
            (shape.n_kv_heads, self.tp, "n_kv_heads", "tp"),
            (shape.d_ff, self.tp, "d_ff", "tp"),
            (shape.vocab_size, self.tp, "vocab_size", "tp"),
            (
                spec.context_length,
                self.cp * math.lcm(2 if self.cp > 1 else 1, self.tp if self.sequence_parallel else 1),
                "context_length",
                "2, cp and tp" if self.cp > 1 else "tp",
            ),
        ]
        for number, by, name, what in whole:
            if number % by:
                raise UsageError(f"{name} ({number}) must be a multiple of {what} ({by})")
        if spec.optimizer.own.gathers and self.pp > 1:
            # if any rank needs a group for gathering matrices, all create it, since creation is collective
            kinds = [range(shape.n_layers), *([shape.mixture_layers] if shape.experts is not None else [])]
            for layers in kinds:
                having = {
                    self.stage_rank(stage)
                    for stage, own in enumerate(self.stage_layers(shape.n_layers))
                    if not set(own).isdisjoint(layers)
                }
                if len(having) < self.pp:
                    what = "layers" if layers is kinds[0] else "layers with experts"
                    raise UsageError(
                        f"optimizer.kind '{spec.optimizer.kind}': each of the {counted(self.pp, 'rank')} of the "
                        f"pipeline must "
                        f"have {what}, only {len(having)} have; change pp, stages_per_rank or layers_per_stage"
                    )
        if shape.experts is None and self.ep > 1:
            raise UsageError(f"ep ({self.ep}): the model has no experts; set ep to 1")
        if shape.experts is not None:
            if shape.experts.count % self.ep:
                raise UsageError(f"experts.count ({shape.experts.count}) must be a multiple of ep ({self.ep})")
            if shape.experts.shared_d_ff % self.tp:
                raise UsageError(
                    f"experts.shared_d_ff ({shape.experts.shared_d_ff}) must be a multiple of tp ({self.tp})"
                )
            if spec.context_length % (self.cp * self.tp):
                raise UsageError(
                    f"context_length ({spec.context_length}) must be a multiple of cp times tp "
                    f"({self.cp * self.tp}): each rank routes its part of a sequence to experts"
                )
        if self.pp > 1 and shape.tied_embeddings:
            raise UsageError("pp: a model with tied embeddings cannot be cut into stages; set tied_embeddings to false")
        self.stage_layers(shape.n_layers)
