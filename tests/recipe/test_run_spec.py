"""The id of a run: stable, and changed by everything that decides what the run computes (contract 1)."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import lion  # noqa: F401 (registers an optimizer with options)
import new_blocks  # noqa: F401 (registers blocks)
from armillary.recipe import (
    LengthPhase,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    RopeScaling,
    RunSpec,
    Schedule,
    Validation,
    canonical_hash,
)

SPEC = RunSpec(
    corpus="c0ffee",
    model=ModelShape(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, vocab_size=300),
    context_length=32,
    batch_sequences=8,
    accumulation=2,
    steps=40,
    mixture=(
        MixturePhase(start_step=0, weights={"a": 0.25, "b": 0.75}),
        MixturePhase(start_step=30, weights={"a": 0.5, "b": 0.5}),
    ),
    schedule=Schedule(kind="wsd", warmup_steps=4, decay_steps=10, decay="1-sqrt", final_ratio=0.1),
    optimizer=OptimizerSpec(lr=3e-3, z_loss=1e-4),
    seed=5,
    precision="bf16",
    validation=Validation(every=10, windows=16),
)

# A valid other value for every field there is. A field that is added later fails the test below until it stands here.
OTHER = {
    "corpus": "decaf",
    "model.n_layers": 3,
    "model.d_model": 128,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.head_dim": 32,
    "model.d_ff": 128,
    "model.vocab_size": 301,
    "model.tied_embeddings": True,
    "model.qk_norm": True,
    "model.rope_theta": 5e5,
    "model.norm_eps": 1e-6,
    "model.biases": ["out"],
    "model.rope_scaling": {"kind": "linear", "factor": 2.0},
    "model.attention": {"kind": "gated"},
    "model.feed_forward": {"kind": "shifted-relu", "shift": 0.5},
    "model.experts": {"count": 4, "active": 2, "d_ff": 16},
    "context_length": 64,
    "batch_sequences": 16,
    "accumulation": 4,
    "steps": 41,
    "mixture": [{"start_step": 0, "weights": {"a": 0.25, "b": 0.75}}],
    "schedule.kind": "constant",
    "schedule.warmup_steps": 5,
    "schedule.decay_steps": 11,
    "schedule.decay": "linear",
    "schedule.final_ratio": 0.0,
    "optimizer.lr": 3.0000000000000005e-3,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.99,
    "optimizer.eps": 1e-9,
    "optimizer.weight_decay": 0.0,
    "optimizer.grad_clip": 2.0,
    "optimizer.z_loss": 0.0,
    "optimizer.kind": "muon",
    "optimizer.momentum": 0.9,
    "optimizer.base_width": 64,
    "optimizer.base_head_dim": 16,
    "optimizer.options": {"slow": 0.5},
    "seed": 6,
    "precision": "fp32",
    "validation.every": None,
    "validation.windows": 17,
    "start": {"weights": "base.safetensors", "sha256": "5" * 64},
    "objective": {"kind": "supervised", "examples": "0123456789abcdef"},
    "adapter": {"rank": 4},
    "lengths": [{"start_step": 30, "context_length": 64, "batch_sequences": 4}],
    "text_share": 0.25,
}

# Fields that ``changed`` may set because of another one.
BOUND = {"schedule.kind", "schedule.decay_steps", "optimizer.kind", "optimizer.momentum"}
BOUND |= {"optimizer.base_width", "optimizer.base_head_dim", "mixture", "lengths", "start"}


def fields_of(document, prefix=""):
    for name in type(document).model_fields:
        value = getattr(document, name)
        if hasattr(type(value), "model_fields") and name != "objective":  # one of several documents
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def changed(spec, changes):
    parts = deepcopy(spec.model_dump(mode="json"))
    for name, value in changes.items():
        *path, last = name.split(".")
        inner = parts
        for key in path:
            inner = inner[key]
        inner[last] = value
    if parts["schedule"]["kind"] == "constant":
        parts["schedule"]["decay_steps"] = 0
    if "objective" in parts:
        parts["mixture"] = []
        parts.pop("lengths", None)
        parts.pop("text_share", None)
    if "adapter" in parts:
        parts["start"] = OTHER["start"]
    optimizer = parts["optimizer"]
    if "options" in optimizer:
        optimizer["kind"] = "lion"
        optimizer.pop("momentum", None)
    if "momentum" in optimizer:
        optimizer["kind"] = "muon"
    if "base_head_dim" in optimizer:
        optimizer["base_width"] = OTHER["optimizer.base_width"]
    return RunSpec.model_validate(parts)


def test_the_id_never_changes():
    """Stores and published models name runs by it: a new version must find them again."""
    assert SPEC.id == "231c8bf9de4a366c"


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"base_head_dim": 16}, {"kind": "adamw", "momentum": 0.5, "base_width": 64}]
)
def test_options_of_an_optimizer_without_effect_are_refused(options):
    with pytest.raises(ValidationError, match=r"muon|base_width"):
        OptimizerSpec(lr=1e-3, **options)


def test_every_field_has_another_value_here():
    assert set(OTHER) | {"format"} == set(fields_of(SPEC))


@given(st.sets(st.sampled_from(sorted(OTHER))), st.sets(st.sampled_from(sorted(OTHER))))
def test_ids_are_equal_where_specifications_are(one, two):
    first, second = (changed(SPEC, {name: OTHER[name] for name in names}) for names in (one, two))
    assert (first.id == second.id) == (first == second)
    if one != two and not BOUND & (one ^ two):
        assert first.id != second.id


@pytest.mark.parametrize("name", sorted(OTHER))
def test_every_field_changes_the_id(name):
    assert changed(SPEC, {name: OTHER[name]}).id != SPEC.id


def test_the_id_survives_json_and_the_order_of_keys():
    again = RunSpec.model_validate_json(SPEC.model_dump_json())
    assert again == SPEC and again.id == SPEC.id
    weights = {"b": 0.75, "a": 0.25}
    turned = SPEC.model_copy(update={"mixture": (MixturePhase(start_step=0, weights=weights), SPEC.mixture[1])})
    assert turned.id == SPEC.id


@st.composite
def run_specs(draw):
    """Runs that differ in length, schedule and mixture only."""
    steps = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["constant", "cosine", "linear", "wsd"]))
    warmup = draw(st.integers(0, min(3, steps)))
    decay = draw(st.integers(0, steps - warmup)) if kind == "wsd" else 0
    starts = [0, *sorted(draw(st.sets(st.integers(1, 12), max_size=2)))]
    shares = [draw(st.sampled_from([0.25, 0.5])) for _ in starts]
    return SPEC.model_copy(
        update={
            "steps": steps,
            "schedule": Schedule(
                kind=kind,
                warmup_steps=warmup,
                decay_steps=decay,
                decay=draw(st.sampled_from(["linear", "cosine", "1-sqrt"])),
            ),
            "mixture": tuple(
                MixturePhase(start_step=start, weights={"a": share, "b": 1 - share})
                for start, share in zip(starts, shares, strict=True)
            ),
        }
    )


@given(run_specs(), run_specs(), st.integers(1, 12))
def test_a_prefix_is_shared_exactly_by_runs_that_agree_on_it(one, two, steps):
    def begins(spec):
        # Which phase a step is in matters besides its weights: the order of the data is keyed by it.
        return [(spec.lr(step), [p.weights for p in spec.mixture if p.start_step <= step]) for step in range(steps)]

    if steps <= min(one.steps, two.steps):
        assert (one.prefix_id(steps) == two.prefix_id(steps)) == (begins(one) == begins(two))


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"steps", "mixture"} - {n for n in OTHER if "schedule" in n}))
def test_what_does_not_change_with_the_step_is_part_of_every_prefix(name):
    assert changed(SPEC, {name: OTHER[name]}).prefix_id(1) != SPEC.prefix_id(1)


LONGER = LengthPhase(
    start_step=20,
    context_length=128,
    batch_sequences=2,
    rope_theta=1e5,
    rope_scaling=RopeScaling(kind="yarn", factor=4, original_length=32),
)


def test_a_run_whose_length_changes_counts_each_part_as_it_is():
    spec = SPEC.model_copy(update={"lengths": (LONGER,)})
    assert [(start, end) for start, end, _ in spec.stretches()] == [(0, 20), (20, 40)]
    assert spec.during(19) == SPEC and SPEC.during(39) == SPEC
    late = spec.during(20)
    assert late.model == SPEC.model.model_copy(update={"rope_theta": 1e5, "rope_scaling": LONGER.rope_scaling})
    assert (late.context_length, late.batch_sequences, late.lr(35)) == (128, 2, SPEC.lr(35))
    assert spec.tokens == 20 * 8 * 32 + 20 * 2 * 128
    assert spec.tokens_after(20) == 20 * 8 * 32 and spec.tokens_after(21) == 20 * 8 * 32 + 2 * 128
    halves = SPEC.model_copy(update={"steps": 20}).flops, late.model_copy(update={"steps": 20}).flops
    assert spec.flops == pytest.approx(sum(halves))


def test_a_prefix_of_a_run_whose_length_changes():
    """In the short phase the order depends on how the phase goes on, in the long one on nothing that is to come."""
    spec = SPEC.model_copy(update={"lengths": (LONGER,)})

    def altered(start):
        mixture = (SPEC.mixture[0], MixturePhase(start_step=start, weights={"a": 1.0, "b": 0.0}))
        return spec.model_copy(update={"mixture": mixture})

    assert spec.prefix_id(10) != SPEC.prefix_id(10)
    assert altered(15).prefix_id(10) != spec.prefix_id(10)
    assert altered(25).prefix_id(10) == spec.prefix_id(10)
    assert altered(25).prefix_id(24) == spec.prefix_id(24) != altered(23).prefix_id(24)
    constant = spec.model_copy(update={"schedule": Schedule(kind="constant")})
    assert constant.model_copy(update={"steps": 50}).prefix_id(30) == constant.prefix_id(30)
    shrinking = constant.model_copy(
        update={"context_length": 128, "lengths": (LONGER.model_copy(update={"context_length": 32}),)}
    )
    assert shrinking.model_copy(update={"steps": 50}).prefix_id(30) != shrinking.prefix_id(30)


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))))
def test_the_canonical_hash_does_not_depend_on_the_order_of_keys(value):
    assert canonical_hash(value) == canonical_hash(dict(reversed(value.items())))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixture": []}, "must start at step 0"),
        ({"mixture": [{"start_step": 1, "weights": {"a": 1.0}}]}, "must start at step 0"),
        (
            {"mixture": [{"start_step": s, "weights": {"a": 1.0}} for s in (0, 5, 5)]},
            "growing steps, found [0, 5, 5]",
        ),
        ({"accumulation": 3}, "batch_sequences (8) must be a multiple of accumulation (3)"),
        ({"schedule.warmup_steps": 31}, "warmup_steps (31) and decay_steps (10) do not fit into 40 steps"),
        ({"schedule.kind": "cosine"}, "decay_steps belongs to kind 'wsd'"),
        ({"optimizer.lr": float("inf")}, "finite"),
        ({"optimizer.dampening": 0.9}, "Extra inputs"),
        ({"lengths": [{"start_step": 9, "context_length": 48, "batch_sequences": 8}]}, "found 32"),
        ({"lengths": [{"start_step": 40, "context_length": 64, "batch_sequences": 8}]}, "but the run has 40"),
        ({"lengths": [{"start_step": 9, "context_length": 64, "batch_sequences": 3}]}, "multiple of accumulation (2)"),
        (
            {"lengths": [{"start_step": s, "context_length": 64, "batch_sequences": 8} for s in (9, 9)]},
            "growing steps, found [9, 9]",
        ),
        ({"model.n_kv_heads": 3}, "n_heads (4) must be a multiple of n_kv_heads (3)"),
        ({"model.head_dim": 15}, "head_dim (15) must be even"),
        ({"mixture": [{"start_step": 0, "weights": {"a": 0.5, "b": 0.4}}]}, "sum to 1, these sum to 0.9"),
        ({"mixture": [{"start_step": 0, "weights": {"a": 1.5, "b": -0.5}}]}, "must not be negative, found {'b': -0.5}"),
        ({"mixture": [{"start_step": 0, "weights": {"a": float("nan")}}]}, "finite"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, said):
    with pytest.raises(ValidationError) as caught:
        changed(SPEC, changes)
    assert said in str(caught.value)


def test_a_specification_cannot_be_changed_after_its_id_was_told():
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.seed = 7
