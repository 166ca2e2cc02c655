"""The documents of a plan: a model (our shape, a run file, or a Hugging Face ``config.json``) and a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from armillary.plan.hardware_files import Accelerator, find_accelerator, read_accelerator
from armillary.plan.software_files import family_names, software
from armillary.recipe import (
    DamagedFileError,
    Document,
    LargeRun,
    ModelShape,
    UsageError,
    first_problem,
    load_document,
    load_training,
    read_json,
    read_yaml,
)

# Model types whose feed-forward block has two matrices.
_TWO_MATRICES = {"gpt2", "gpt_neox", "gptj", "bloom", "opt", "falcon", "mpt", "starcoder2", "phi"}
_REMEDY = "give the config.json of a model"


class ClusterSpec(Document):
    """A cluster of ``accelerators`` of one kind, and its differences from the accelerator's usual node.

    ``accelerator`` is a name (``h100``) or the path of a TOML file (``armillary plan measure``). ``software`` is the
    family of programs that trains. An accelerator fails once in ``mtbf_accelerator_hours``; training then takes
    ``recovery_s`` to continue, and waits ``checkpoint_block_s`` for each checkpoint. ``power_overhead`` is the energy
    of the building over that of the accelerators. ``price_per_hour`` is that of one accelerator.
    """

    accelerator: str
    accelerators: int = Field(ge=1)
    node: int | None = Field(default=None, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    link_gb_s: float | None = Field(default=None, gt=0)
    network_gb_s: float | None = Field(default=None, gt=0)
    software: str = "armillary"
    precision: str = "bf16"
    mtbf_accelerator_hours: float = Field(default=50_000.0, gt=0)
    recovery_s: float = Field(default=300.0, ge=0)
    checkpoint_block_s: float = Field(default=2.0, ge=0)
    power_overhead: float = Field(default=1.2, ge=1)
    price_per_hour: float | None = Field(default=None, gt=0)
    currency: str = "USD"


def read_cluster(path: Path) -> tuple[ClusterSpec, str, Accelerator]:
    """The cluster of a YAML file, and its accelerator with the cluster's own figures.

    Raises:
        UsageError: the file has a problem, or the accelerator, its precision or the software is not known.
    """
    cluster = load_document(path, ClusterSpec)
    if cluster.accelerator.endswith(".toml"):
        name, accelerator = "own", read_accelerator(path.parent / cluster.accelerator)
    else:
        try:
            name, accelerator = find_accelerator(cluster.accelerator)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    if cluster.software not in family_names():
        raise UsageError(f"{path}: software '{cluster.software}' is unknown; known are {', '.join(family_names())}")
    own = {key: getattr(cluster, key) for key in ("node", "memory_gb", "link_gb_s", "network_gb_s")}
    accelerator = accelerator.model_copy(update={key: value for key, value in own.items() if value is not None})
    try:
        accelerator.flops(cluster.precision)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    software(cluster.software)
    return cluster, name, accelerator


def read_model(path: Path) -> tuple[ModelShape, LargeRun | None]:
    """The shape in a file: a YAML file of a shape or of a large run (which is returned too), or a ``config.json``.

    A folder stands for its ``config.json``.

    Raises:
        UsageError: the file has a problem, or describes a model that the planner has no times for.
    """
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        try:
            return shape_of_config(read_json(path, "the model's configuration", _REMEDY)), None
        except FileNotFoundError as error:
            raise UsageError(f"{path}: no such file") from error
        except DamagedFileError as error:  # the user's file, not one of ours
            raise UsageError(str(error)) from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    if "run" in read_yaml(path).keys:
        large = load_training(path)
        assert isinstance(large, LargeRun)
        return large.run.model, large
    return load_document(path, ModelShape), None


def shape_of_config(config: dict[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration describes; biases, gates and learned positions are not counted.

    Raises:
        UsageError: a size is missing or wrong, or layers are of a kind that the planner has no times for.
    """
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    kind = config.get("model_type", "")
    if any(key in config for key in ("mamba_d_state", "ssm_cfg", "mamba_num_heads", "state_size")):
        raise UsageError(f"model_type '{kind}' has Mamba layers, which the planner cannot time")

    def size(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            if value is not None:
                raise UsageError(f"'{key}' is {value!r}: it must be a whole number of 1 or more")
        if default is None:
            raise UsageError(f"the key '{keys[0]}' is missing; {_REMEDY}")
        return default

    width = size("hidden_size", "n_embd", "d_model")
    heads = size("num_attention_heads", "n_head", "n_heads")
    shape: dict[str, Any] = {
        "n_layers": size("num_hidden_layers", "n_layer", "n_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": size("num_key_value_heads", default=heads),
        "head_dim": size("head_dim", default=max(2, width // heads)),
        "d_ff": size("intermediate_size", "n_inner", "ffn_dim", default=4 * width),
        "vocab_size": size("vocab_size"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", kind in _TWO_MATRICES)),
    }
    if kind in _TWO_MATRICES:
        shape["feed_forward"] = {"kind": "relu2"}
    if config.get("kv_lora_rank"):
        rotary = size("qk_rope_head_dim")
        shape["n_kv_heads"] = heads
        shape["head_dim"] = size("qk_nope_head_dim") + rotary
        shape["attention"] = {
            "kind": "latent",
            "kv_rank": size("kv_lora_rank"),
            "rope_head_dim": rotary,
            "value_head_dim": size("v_head_dim"),
            "q_rank": config.get("q_lora_rank"),
        }
    count = next(
        (config[key] for key in ("n_routed_experts", "num_experts", "num_local_experts") if config.get(key)), 0
    )
    if count:
        wide = size("moe_intermediate_size", "intermediate_size")
        shape["experts"] = {
            "count": count,
            "active": size("num_experts_per_tok", "num_experts_per_token"),
            "d_ff": wide,
            "shared_d_ff": config.get("shared_expert_intermediate_size")
            or (config.get("n_shared_experts") or 0) * wide,
            "dense_layers": config.get("first_k_dense_replace") or 0,
            "every": config.get("decoder_sparse_step") or 1,
        }
    try:
        return ModelShape.model_validate(shape)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from error
