"""Reads a table of published training speed: one job per row, or the reason why a row has none.

The columns are those of ``training_throughput.csv`` in the project's published data: model and its sizes, accelerator,
layout, batch, precision; outcome columns may be empty. Missing values are taken from ``models.toml`` and from the
defaults of the family of programs (``software.toml``); ``assumed`` lists them.
"""

from __future__ import annotations

import csv
import io
import math
import re
import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from armillary.plan.constants import constants
from armillary.plan.hardware_files import find_accelerator
from armillary.plan.job import Extras, Job, Parallelism, Recompute, Software, nearest_divisors
from armillary.plan.memory import peak_memory
from armillary.plan.software_files import software, software_of
from armillary.recipe import ModelShape, UsageError, first_problem

_SHARES = 8  # of the layers that may run again
NEEDED = ("model", "accelerator")
_PRECISIONS = (
    ("fp4", "fp4"), ("fp8", "fp8"), ("float8", "fp8"), ("e4m3", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"),
    ("fp16", "fp16"), ("float16", "fp16"), ("half", "fp16"), ("fp32", "fp32"), ("float32", "fp32"), ("tf32", "fp32"),
    ("mixed", "bf16"), ("amp", "bf16"),
)  # fmt: skip
_EMPTY = {"", "-", "--", "\u2013", "\u2014", "?", "n/a", "na", "nan", "none", "null", "unknown", "not stated"}
_LARGEST = 10**9  # of any size in a row
_MOST = {"tp": 4096, "pp": 4096, "vpp": 1024, "cp": 65536, "ep": 65536, "dp": 10**7, "micro_batch": 10**7}
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Row:
    """One row: ``job``, or the ``reason`` why there is none. ``line`` is its line in the file, from 1."""

    line: int
    fields: dict[str, str]
    job: Job | None = None
    reason: str = ""
    assumed: tuple[str, ...] = field(default=())

    @property
    def source(self) -> str:
        """The publication, without the section or the line in it: rows of one source share its errors."""
        return publication(self.fields.get("source", ""))

    def number(self, name: str) -> float | None:
        """The number in a column; None if it is empty.

        Raises:
            UsageError: the column holds another text.
        """
        return _number(self.fields, name, self.line)

    @property
    def out_of_memory(self) -> bool:
        """Whether the row records that the job did not fit."""
        return row_failed(self.fields)


def publication(source: str) -> str:
    """A source's name up to the section, line or version in it."""
    source = re.sub(r"\s(§|l\.\d|T\d|issue #|\(|README strong|README images|[\d.]+ NeMo Container).*", "", source)
    if source.startswith("Megatron-Bridge"):
        return "Megatron-Bridge"
    return source.strip() or "unnamed"


def read_rows(path: Path) -> list[Row]:
    """All rows of a table.

    Raises:
        UsageError: the file cannot be read, is not a table in UTF-8, or a needed column is missing.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save the table as CSV in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(
                f"{path}: the column {missing[0]!r} is missing; a table of layouts has {', '.join(NEEDED)}"
            )
        rows = []
        for entry in reader:
            spare = entry.pop(None, None)
            fields = {k: (v or "").strip() for k, v in entry.items()}
            if spare:
                why = f"line {reader.line_num}: more values than columns; put a comma in quotes"
                rows.append(Row(reader.line_num, fields, reason=why))
            else:
                rows.append(_row(reader.line_num, fields))
        return rows
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error


def _row(line: int, fields: dict[str, str]) -> Row:
    assumed: list[str] = []
    try:
        job = _job(fields, line, assumed)
        job.check()
    except UsageError as error:
        return Row(line, fields, reason=str(error), assumed=tuple(assumed))
    except ValidationError as error:
        return Row(line, fields, reason=f"line {line}: {first_problem(error)}", assumed=tuple(assumed))
    return Row(line, fields, job, assumed=tuple(assumed))


def _number(fields: dict[str, str], name: str, line: int) -> float | None:
    text = fields.get(name, "")
    if text.lower() in _EMPTY:
        return None
    try:
        value = float(text.replace(",", "").replace("_", "x"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"line {line}, column '{name}': '{text}' is not a number")
    return value


def _whole(fields: dict[str, str], name: str, line: int) -> int | None:
    value = _number(fields, name, line)
    if value is None:
        return None
    if not 1 <= value <= _LARGEST or value != int(value):
        raise UsageError(f"line {line}, column '{name}': '{fields[name]}' is not a whole number from 1 to {_LARGEST}")
    return int(value)


@cache
def _known_models() -> dict[str, tuple[ModelShape, int | None, Extras]]:
    read = tomllib.loads(files("armillary.plan").joinpath("models.toml").read_text("utf-8"))
    found = {}
    for entry in read["model"]:
        shape = ModelShape.model_validate(entry["shape"])
        for name in entry["names"]:
            found[name] = (shape, entry.get("sequence"), Extras(**entry.get("extras", {})))
    return found


def _plain(name: str) -> str:
    name = re.sub(r"\(.*?\)", "", name.lower()).replace("_", "-").strip()
    name = name.split(" - ")[0].strip()
    name = re.sub(r"\s+", "-", name).strip("-")
    return name.replace("llama-2-", "llama2-").replace("llama-3-", "llama3-")


def known_model(name: str) -> tuple[ModelShape, int | None, Extras] | None:
    """The shape of a published model, its usual sequence length and extras; None if it is not in ``models.toml``."""
    return _known_models().get(_plain(name))


def _shape(fields: dict[str, str], line: int, assumed: list[str]) -> tuple[ModelShape, int | None, Extras]:
    name = fields.get("model", "")
    billions = _number(fields, "params_B", line)
    layers, hidden = _whole(fields, "layers", line), _whole(fields, "hidden", line)
    if layers is not None and layers > _MOST_LAYERS:
        raise UsageError(f"line {line}, column 'layers': '{fields['layers']}' is more than {_MOST_LAYERS}")
    known = known_model(name)
    if re.search(r"nemotron.*(nano|super|-h|\bh\b)|mamba|jamba|zamba", name, re.IGNORECASE):
        raise UsageError(f"model '{name}' has Mamba layers, which the planner cannot time")
    hybrid = re.search(r"qwen3-next|granite-?4.*h\b|falcon-h1|rwkv", name, re.IGNORECASE)
    if hybrid is not None:
        raise UsageError(f"model '{name}' has recurrent layers, which the planner cannot time")
    if known is not None and (known[0].experts is not None or hidden is None or layers is None):
        without = re.search(r"w/?o(ut)? mtp", name, re.IGNORECASE)
        return (known[0], known[1], replace(known[2], ahead=0)) if without else known
    if re.search(r"moe|mixtral|\d+x\d+(\.\d+)?b\b|a\d+(\.\d+)?b\b", name, re.IGNORECASE):
        raise UsageError(
            f"model '{name}': it has experts, and their sizes are neither in the table's columns nor known"
        )
    if hidden is None:
        if billions is None:
            raise UsageError(f"model '{name}': its sizes are neither in the row nor known")
        assumed.append("model sizes")
        return _usual(billions), None, Extras()
    vocabulary = _whole(fields, "vocab", line) or 51200
    heads = _whole(fields, "heads", line)
    if heads is None:
        assumed.append("heads")
        near = max(8, round(hidden / 128 / 8) * 8)
        heads = next((n for n in range(near, 0, -8) if hidden % n == 0), hidden // 128 or 1)
    kv_heads = _whole(fields, "kv_heads", line) or heads
    width = _whole(fields, "ffn", line)
    if width is None:
        assumed.append("ffn")
        width = 4 * hidden
    if layers is None:
        if billions is None:
            raise UsageError(f"model '{name}': the row has neither layers nor params_B")
        assumed.append("layers")
        per_layer = 2 * hidden * hidden * (1 + kv_heads / heads) + 2 * hidden * width
        layers = max(1, round((billions * 1e9 - hidden * vocabulary) / per_layer))
    head_dim = max(2, hidden // heads // 2 * 2)

    def build(gated: bool, tied: bool) -> ModelShape:
        return ModelShape.model_validate({
            "n_layers": layers, "d_model": hidden, "n_heads": heads,
            "n_kv_heads": kv_heads if heads % kv_heads == 0 else heads, "head_dim": head_dim, "d_ff": width,
            "vocab_size": vocabulary, "tied_embeddings": tied, "feed_forward": None if gated else {"kind": "relu2"},
        })  # fmt: skip

    if billions is None:
        assumed.append("params_B")
        return build(width != 4 * hidden, width == 4 * hidden), None, Extras()
    options = [build(gated, tied) for gated in (False, True) for tied in (True, False)]
    best = min(options, key=lambda shape: abs(shape.parameters / 1e9 - billions))
    return best, None, Extras()


def _usual(billions: float) -> ModelShape:
    """A GPT of this size with usual proportions: 128 wide a layer up to 1B, wider above (Kaplan et al. 2020: flat)."""
    layers = min(128, max(12, round(16 * billions ** (1 / 3) / 2) * 2))
    hidden = max(256, round(math.sqrt(billions * 1e9 / 12 / layers) / 256) * 256)
    return ModelShape.model_validate({
        "n_layers": layers, "d_model": hidden, "n_heads": hidden // 128, "n_kv_heads": hidden // 128, "head_dim": 128,
        "d_ff": 4 * hidden, "vocab_size": 32768, "tied_embeddings": True, "feed_forward": {"kind": "relu2"},
    })  # fmt: skip


def _recompute(text: str, family: Software) -> Recompute:
    plain = text.lower()
    if not plain:
        return family.recompute
    if plain.startswith("none") or plain in ("no", "false", "off", "-", "n/a"):
        return "none"
    if "selective" in plain or plain.startswith("1 layer"):
        return "selective"
    return "full"


@cache
def _clusters() -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = tomllib.loads(files("armillary.plan").joinpath("clusters.toml").read_text("utf-8"))[
        "cluster"
    ]
    return read


def _job(fields: dict[str, str], line: int, assumed: list[str]) -> Job:
    name, accelerator = find_accelerator(fields.get("accelerator", ""))
    for cluster in _clusters():
        if any(word in fields.get("source", "").lower() for word in cluster["words"]):
            accelerator = accelerator.model_copy(update={"network_gb_s": cluster["network_gb_s"]})
    shape, usual_length, extras = _shape(fields, line, assumed)
    usual = {"google": "xla", "huawei": "mindspeed"}.get(accelerator.vendor)
    family = software(usual) if usual else software_of(fields.get("source", ""), fields.get("notes", ""))
    text = fields.get("precision", "").lower()
    precision = next((ours for theirs, ours in _PRECISIONS if theirs in text), None)
    if not text:
        assumed.append("precision")
        precision = "bf16"
    if precision is None:
        raise UsageError(f"line {line}, column 'precision': '{text}' is not one of bf16, fp16, fp8, fp4, fp32")
    notes = fields.get("notes", "").lower() + " " + fields.get("recompute", "").lower()
    length = _whole(fields, "seq", line)
    if length is None:
        length = usual_length or 4096
        assumed.append("seq")
    ranks = _whole(fields, "n_accel", line)
    sizes = {key: _whole(fields, key, line) for key in ("tp", "pp", "vpp", "cp", "ep", "dp", "micro_batch")}
    for key, size in sizes.items():
        if size is not None and size > _MOST[key]:
            raise UsageError(f"line {line}, column '{key}': '{fields[key]}' is more than {_MOST[key]}")
    batch = _whole(fields, "global_batch", line)
    tp, pp, cp = (sizes[key] or 1 for key in ("tp", "pp", "cp"))
    if ranks is None:
        if sizes["dp"] is None:
            assumed.append("n_accel")
            ranks = 64
        else:
            ranks = tp * pp * cp * sizes["dp"]
    if ranks % (tp * pp * cp):
        raise UsageError(
            f"n_accel ({ranks}) must be a multiple of tp times pp times cp ({tp * pp * cp}); "
            + nearest_divisors(ranks, tp * pp * cp)
        )
    dp = ranks // (tp * pp * cp)
    if "sequence parallel" in notes and "without sequence parallel" not in notes:
        family = replace(family, sequence_parallel=True)
    zero = family.zero
    if "shard_grad_op" in notes:
        zero = 2
    elif "full_shard" in notes or "fsdp" in notes:
        zero = 3
    elif (found := re.search(r"zero-?([0-3])", notes)) is not None:
        zero = int(found[1])
    shard = None
    if (found := re.search(r"fsdp shard=(\d+)", notes)) is not None:
        shard = min(dp * cp, int(found[1]))
    if re.search(r"token.?drop|capacity", f"{fields.get('model', '')} {notes}".lower()):
        # Experts take a fixed number of tokens: the host neither waits for counts nor starts each product. Choosing
        # the tokens and padding to that number are single operators.
        family = replace(family, host_expert_us=2 * family.host_layer_us, host_sync_us=0.0, expert_traffic=1.6)
    job = Job(
        shape,
        Parallelism(tp, pp, sizes["vpp"] or 1, cp, sizes["ep"] or 1, dp, sizes["micro_batch"] or 1,
                    _recompute(fields.get("recompute", ""), family), zero, shard),
        length, batch or 0, accelerator, family, precision,
        adapter="lora" in notes, offload="offload" in notes, accelerator_name=name,
        extras=extras,
    )  # fmt: skip
    if sizes["vpp"] is None and pp > 1 and family.interleaves:
        assumed.append("vpp")  # tables of programs that interleave often leave the number out
        per_rank = math.ceil(shape.n_layers / pp)
        stages = max((v for v in range(1, 7) if per_rank % v == 0 and pp * v <= shape.n_layers), default=1)
        job = job.with_parallelism(replace(job.parallelism, stages=stages))
    if sizes["tp"] is None and sizes["pp"] is None and ranks > 1:
        assumed.append("layout")
        job = _with_layout(job, ranks)
    if batch is None:
        p = job.parallelism
        assumed.append("global_batch")
        job = replace(job, sequences=p.dp * p.micro_batch * (1 if job.offload else 8 * p.pp))
    if sizes["micro_batch"] is None:
        assumed.append("micro_batch")
        job = _with_micro_batch(job)
    if not fields.get("recompute") and not _fits(job):
        # the least that makes it fit: tables often leave it out
        choices: list[tuple[Recompute, float]] = [("selective", 1.0)]
        choices += [("full", (i + 1) / _SHARES) for i in range(_SHARES)]
        for again, share in choices:
            trial = job.with_parallelism(replace(job.parallelism, recompute=again, recompute_share=share))
            if _fits(trial) or (share == 1 and again == "full" and not row_failed(fields)):
                assumed.append("recompute")
                return trial
    return job


def _fits(job: Job) -> bool:
    return peak_memory(job, constants()).total <= job.accelerator.memory_gb


def row_failed(fields: dict[str, str]) -> bool:
    """Whether a row records that the job did not fit."""
    return fields.get("outcome", "").strip().upper() == "OOM"


def _with_layout(job: Job, ranks: int) -> Job:
    """The job in the plainest layout that fits: parameters in shards on TPUs, else the fewest model ranks."""
    if job.software.zero == 3:
        return job.with_parallelism(Parallelism(dp=ranks, zero=3, recompute="full"))
    experts = job.model.experts.count if job.model.experts is not None else 1
    options = sorted((tp * pp, pp, tp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8, 16) if ranks % (tp * pp) == 0)
    choices: tuple[Recompute, ...] = ("none", "full")
    for again in choices:
        for _, pp, tp in options:
            if job.model.n_heads % tp or job.model.n_layers % pp:
                continue
            dp = ranks // (tp * pp)
            p = Parallelism(tp=tp, pp=pp, dp=dp, ep=math.gcd(experts, dp), zero=1, recompute=again)
            trial = replace(job, parallelism=p, sequences=max(job.sequences, dp * 8 * pp))
            if peak_memory(trial, constants()).total <= job.accelerator.memory_gb:
                return trial
    return job.with_parallelism(Parallelism(tp=min(8, ranks), pp=max(1, ranks // 8), zero=1, recompute="full"))


def _with_micro_batch(job: Job) -> Job:
    """The job with the largest usual micro-batch: up to 16,384 tokens without a pipeline, one sequence with one."""
    p = job.parallelism
    if p.pp > 1:
        return job
    best = job
    for size in (2, 4, 8, 16):
        per_rank = job.sequences / p.dp
        if size * job.length / p.cp > 16384 or per_rank % size:
            break
        trial = job.with_parallelism(replace(p, micro_batch=size))
        if peak_memory(trial, constants()).total > job.accelerator.memory_gb:
            break
        best = trial
    return best


def flops_per_token(row: Row, job: Job) -> float:
    """FLOPs per token by the row's convention, by which its ``tflops_per_accel`` counts."""
    convention = row.fields.get("flops_convention", "").lower()
    shape = job.model
    counted = 1.0
    if (found := re.search(r"under-reports ~?([\d.]+) ?%", convention)) is not None:
        counted = 1 - float(found[1]) / 100
    logits = 2 * shape.vocab_size * shape.d_model * (1 + job.extras.ahead)
    full = "causal attention" not in convention or "non-causal" in convention
    forward = _forward_flops(job, full)
    if "6n +" in convention and "full" in convention:
        n = (row.number("params_B") or shape.parameters / 1e9) * 1e9
        return 6 * n + 12 * shape.n_layers * shape.d_model * job.length
    if "hardware" in convention:
        again = 1.0 if job.parallelism.recompute == "full" else 0.0
        return counted * ((3 + again) * (forward - logits) + 3 * logits)
    times = 2.0 if job.adapter else 3.0
    return times * forward


def _forward_flops(job: Job, full: bool) -> float:
    """FLOPs of the forward pass per token, including the parts of the model beyond its shape."""
    shape, extras = job.model, job.extras
    logits = 2 * shape.vocab_size * shape.d_model
    whole = shape.forward_flops_per_token(job.length, "full" if full else "causal")
    again = extras.ahead * (whole - logits) / shape.n_layers + extras.ahead * logits
    keys = job.length if full else job.length / 2
    pairs = shape.n_layers * shape.attention_block.pair_flops(shape) * keys
    return whole + again - pairs * (1 - extras.attended(keys))


def hardware_flops_per_token(job: Job) -> float:
    """Executed FLOPs per token: with the backward pass, recomputation, and the pairs that attention computes."""
    forward = _forward_flops(job, not job.software.flash)
    logits = 2 * job.model.vocab_size * job.model.d_model * (1 + job.extras.ahead)
    share = job.parallelism.recompute_share if job.parallelism.recompute == "full" else 0.0
    again = share * (forward - logits)
    return (2.0 if job.adapter else 3.0) * forward + again


def measured(row: Row) -> tuple[str, float] | None:
    """The measured speed of a row, and its column: tokens/s, else TFLOP/s, else seconds, else MFU.

    Tokens first: programs count FLOPs differently (Megatron of 2025 counts two matrices of GPT-OSS's experts).
    """
    for name in ("tokens_per_s_per_accel", "tflops_per_accel", "step_time_s", "mfu"):
        try:
            value = row.number(name)
        except UsageError:
            continue  # a column of outcomes may hold a remark
        if value is not None and value > 0:
            return name, value
    return None


def measured_tflops(row: Row) -> float | None:
    """The measured speed in TFLOP/s by the row's convention, converted from any column; None without one."""
    found, job = measured(row), row.job
    if found is None or job is None:
        return None
    name, value = found
    if name == "tflops_per_accel":
        return value
    if name == "mfu":
        return value * accelerator_peak(row, job)
    tokens = value if name == "tokens_per_s_per_accel" else job.tokens / value / job.parallelism.ranks
    return tokens * flops_per_token(row, job) / 1e12


def accelerator_peak(row: Row, job: Job) -> float:
    """TFLOP/s to which the row's MFU relates."""
    try:
        stated = row.number("peak_tflops")
    except UsageError:
        stated = None
    if stated is not None and stated > 0:
        return stated
    return job.accelerator.peak.get(job.precision, max(job.accelerator.peak.values()))


def values_of(row: Row, seconds: float) -> dict[str, Any]:
    """The columns that a step of ``seconds`` implies for a row."""
    job = row.job
    assert job is not None
    tokens = job.tokens / seconds / job.parallelism.ranks
    tflops = tokens * flops_per_token(row, job) / 1e12
    model = tokens * job.model.train_flops_per_token(job.length, "full") / 1e12
    peak = accelerator_peak(row, job)
    convention = row.fields.get("flops_convention", "").lower()
    return {
        "step_time_s": seconds,
        "tflops_per_accel": tflops,
        "tokens_per_s_per_accel": tokens,
        "hfu_tflops_per_accel": tokens * hardware_flops_per_token(job) / 1e12,
        "mfu": (model if "hardware" in convention else tflops) / peak,
    }
