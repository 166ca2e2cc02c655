"""Recognises the columns of a table by name: features of laws, losses, and ignored columns.

A column is a loss by a known name (``val_loss``, ``validation/c4``, ``bpb``) or because the user names it. Other
columns are listed as ignored, with the option that includes them. Two columns that could be the same feature are
refused, because only the user knows which one is meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from armillary.laws.table import INDEX, Table
from armillary.recipe import UsageError

# Known column names of the laws' features, in the form of ``plain``.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "params": (
        *(
            "params",
            "parameters",
            "n",
            "nparams",
            "param_count",
            "parameter_count",
            "params_count",
            "model_size",
            "size",
        ),
        *("model_params", "model_parameters", "num_params", "num_parameters", "number_of_parameters", "n_params"),
        *("n_parameters", "total_parameters", "parameters_total", "non_embedding_params", "non_embedding_parameters"),
        *("nonembedding_params", "nonembedding_parameters", "params_non_embedding", "params_nonembedding"),
        *("n_non_embedding", "n_nonembedding", "num_non_embedding_params", "n_non_embedding_params", "numparams"),
        *(
            "param",
            "n_param",
            "nb_params",
            "nb_parameters",
            "model_n_params",
            "trainable_params",
            "trainable_parameters",
        ),
    ),
    "tokens": (
        *("tokens", "d", "data", "ntokens", "train_tokens", "training_tokens", "n_tokens", "num_tokens", "tokens_seen"),
        *("total_tokens", "token_count", "tokens_trained", "n_train_tokens", "num_train_tokens", "number_of_tokens"),
        *("seen_tokens", "tokens_total", "trained_tokens", "consumed_tokens", "tokens_consumed"),
        *("token", "n_token", "nb_tokens", "data_tokens", "dataset_size", "data_size", "total_train_tokens"),
        *("train_total_tokens", "tokens_processed", "processed_tokens", "total_tokens_seen", "total_training_tokens"),
    ),
    "unique_tokens": ("unique_tokens", "unique", "u", "n_unique_tokens", "num_unique_tokens", "tokens_unique"),
    "active_params": ("active_params", "active", "active_parameters", "n_active", "n_active_params", "params_active"),
    "total_params": ("total_params",),
    "experts": ("experts", "n_experts", "num_experts", "n_routed_experts", "num_local_experts"),
    "context": (
        *("context", "context_length", "sequence_length", "seq_len", "seqlen", "seq_length", "max_seq_len", "ctx"),
        *("block_size", "n_ctx", "ctx_len", "max_sequence_length", "context_len"),
    ),
    "width": ("width", "d_model", "hidden_size", "hidden", "hidden_dim", "n_embd", "model_dim", "dmodel"),
    "depth": ("depth", "n_layers", "num_layers", "layers", "n_layer", "num_hidden_layers", "nlayers"),
    "lr": (
        *("lr", "learning_rate", "peak_lr", "max_lr", "learningrate", "peak_learning_rate", "max_learning_rate"),
        *("lr_peak", "lr_max", "base_lr", "learning_rate_peak", "train_learning_rate", "train_lr"),
    ),
    "bs": (
        *("bs", "batch", "batch_size", "batch_tokens", "gbsz", "gbs", "global_batch_size", "global_batch", "bsz"),
        *("batchsize", "train_batch_size", "global_bsz", "tokens_per_batch", "total_batch_size", "global_batchsize"),
    ),
}
# Names of the column that counts the optimizer steps of a curve.
STEPS = (
    *("step", "steps", "global_step", "train_global_step", "trainer_global_step", "train_step", "optimizer_step"),
    *("iteration", "iterations", "iter", "iters", "update", "updates", "num_steps", "n_steps"),
)
_FEATURES = {name: feature for feature, names in ALIASES.items() for name in names}

# Words that mark a column as a loss, and words that exclude it in any combination.
_LOSS = {"loss", "losses", "bpb", "nats", "nll", "ce", "xent", "crossentropy"}
_LOSS_PHRASES = ("bits_per_byte", "bits_per_token", "cross_entropy", "negative_log_likelihood", "log_loss")
_LOG_PERPLEXITIES = ("log_perplexity", "log_ppl", "logppl")
_LOSS_GROUPS = ("validation/", "val/", "valid/", "eval/", "test/", "validation ", "metric/")
_OTHER = {
    *("acc", "accuracy", "std", "stderr", "stdev", "sd", "se", "err", "error", "var", "variance", "ppl", "perplexity"),
    *("ratio", "weight", "scale", "coef", "coefficient", "count", "num", "n", "time", "step", "steps", "aux", "z"),
    *("balance", "balancing", "delta", "diff", "gap", "score", "f1", "bleu", "id", "file", "name", "type", "function"),
    *("spike", "spikes", "slope", "rank", "predicted", "prediction", "low", "high", "norm", "tokens", "date", "hours"),
    *("second", "seconds", "samples", "runtime", "throughput", "mfu", "epoch", "epochs", "flops"),
}


# Units at the end of a column's name, in plain form and singular.
_UNITS = {"k": "thousand", "thousand": "thousand", "m": "million", "mm": "million", "million": "million"}
_UNITS |= dict.fromkeys(("b", "bn", "g", "billion"), "billion") | dict.fromkeys(("t", "trillion"), "trillion")

# Names of losses for the suggestion after a misspelt name.
LOSS_NAMES = (
    "loss",
    "val_loss",
    "valid_loss",
    "validation_loss",
    "eval_loss",
    "test_loss",
    "train_loss",
    "final_loss",
    "bpb",
)


@dataclass(frozen=True)
class ColumnReading:
    """The interpretation of a column: ``role`` is a feature, ``loss``, ``index``, ``domain`` or ``ignored``."""

    column: str
    role: str
    why: str = ""


def plain(name: str) -> str:
    """A column's name in lower case, its words joined by ``_``: ``nParams`` and ``N params`` become ``n_params``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def feature_of(name: str) -> str | None:
    """The feature of a law that a column of this name holds, or None."""
    return _FEATURES.get(plain(name))


def is_loss(name: str) -> bool:
    """Whether a column of this name holds losses."""
    words = plain(name)
    if name.strip() == "L" or words.endswith(_LOG_PERPLEXITIES):  # L(N, D), as papers write it
        return True
    if feature_of(name) or _OTHER & set(words.split("_")):
        return False
    grouped = name.strip().lower().startswith(_LOSS_GROUPS) and len(words.split("_")) > 1
    return bool(_LOSS & set(words.split("_"))) or any(phrase in words for phrase in _LOSS_PHRASES) or grouped


def known_features(columns: Sequence[str]) -> dict[str, str]:
    """The features of columns with known names.

    Raises:
        UsageError: two columns hold the same feature.
    """
    known: dict[str, str] = {}
    for column in columns:
        feature = feature_of(column)
        if feature == "total_params" and not any(feature_of(c) == "active_params" for c in columns):
            feature = "params"  # all parameters of a dense model
        if feature in known.values():
            other = next(c for c in known if known[c] == feature)
            raise UsageError(
                f"'{other}' and '{column}' are both known as {feature}; choose one: --columns "
                f"{other if feature == 'params' else 'params'},{other if feature == 'tokens' else 'tokens'},...,loss"
            )
        if feature is not None:
            known[column] = feature
    return known


def find_column(table: Table, name: str, remedy: str = "choose one with --columns") -> str:
    """The column of ``table`` for ``name``: equal, equal except for case, or another name of the same feature.

    Raises:
        UsageError: none, or several; then the message ends with ``remedy``.
    """
    if name in table.columns:
        return name
    same = [column for column in table.columns if plain(column) == plain(name)]
    if not same and feature_of(name):
        same = [column for column in table.columns if feature_of(column) == feature_of(name)]
    if not same and plain(name) in STEPS:
        same = [column for column in table.columns if plain(column) in STEPS]
    if not same and plain(name) == "loss":
        same = [column for column in table.columns if is_loss(column)]
    if len(same) > 1:
        raise UsageError(f"{table.path}: '{name}' may be {' or '.join(repr(c) for c in same)}; {remedy}")
    if not same:
        table.position(name)  # raises
    return same[0]


def nearly(columns: Sequence[str], names: Sequence[str]) -> str:
    """The end of a message: a column similar to one of ``names``, or one of them in another unit; or nothing."""
    known = [plain(name) for name in names]
    for column in columns:
        of, _, unit = plain(column).removesuffix("s").rpartition("_")
        if unit in _UNITS and of.removesuffix("_in") in known:
            return f"; '{column}' may be {of.removesuffix('_in')} in {_UNITS[unit]}s: give the sizes as 10M or 10000000"
        match = difflib.get_close_matches(plain(column), [plain(name) for name in names], n=1, cutoff=0.75)
        if match and feature_of(column) is None and not is_loss(column):
            return f"; '{column}' is close to '{match[0]}': rename it if it means that"
    return ""


def default_columns(table: Table) -> list[str]:
    """The columns of parameters, tokens and all losses of a table, recognised by name.

    Raises:
        UsageError: parameters, tokens or a loss is missing, or two columns match one of them.
    """
    found = []
    for features in (("params", "active_params", "total_params"), ("tokens",)):
        for feature in features:
            same = [c for c in table.columns if feature_of(c) == feature and table.numeric(c)]
            if len(same) > 1:
                raise UsageError(
                    f"{table.path}: columns {' and '.join(repr(c) for c in same)} are both known as {feature}; list "
                    "the inputs of the law and then the losses with --columns, such as --columns "
                    + ",".join([same[0], "tokens"] if feature != "tokens" else ["params", same[0]])
                    + ",loss"
                )
            if same:
                found += same
                break
        else:
            named = [c for c in table.columns if feature_of(c) in features]
            if named:
                table.sizes(named[:1])  # raises, and names the first entry that is not a number
            names = [name for feature in features for name in ALIASES[feature] if len(name) > 1]
            raise UsageError(
                f"{table.path}: no column is known as {features[0]} (names such as {', '.join(names[:5])})"
                f"{nearly(table.columns, names)}; its columns are "
                f"{', '.join(table.columns)}. List the inputs of the law and then the losses with --columns"
            )
    named = [column for column in table.columns if is_loss(column)]
    losses = [column for column in named if table.numeric(column)]
    if named and not losses:
        table.numbers(named[:1], above=0.0)  # raises, and names the entry
    if not losses:
        raise UsageError(
            f"{table.path}: no column is known as a loss (names such as loss, val_loss, bpb, validation/c4)"
            f"{nearly(table.columns, LOSS_NAMES)}; its "
            f"columns are {', '.join(table.columns)}. Choose one: --columns {','.join(found)},NAME"
        )
    return [*found, *losses]


def readings(table: Table, features: Mapping[str, str], targets: Sequence[str]) -> list[ColumnReading]:
    """The role of each column of ``table``, given ``features`` (column: feature) and ``targets``."""
    chosen = [*features, *targets]
    found = []
    for column in table.columns:
        if column in features:
            found.append(ColumnReading(column, features[column]))
        elif column in targets:
            found.append(ColumnReading(column, "loss"))
        elif column == INDEX or (table.unnamed_index and column == table.columns[0]):
            found.append(ColumnReading(column, "index"))
        elif not table.numeric(column):
            found.append(ColumnReading(column, "ignored", "text"))
        elif feature_of(column):
            found.append(ColumnReading(column, "ignored", f"known as {feature_of(column)}; include it with --columns"))
        else:
            found.append(ColumnReading(column, "ignored", f"if it is a loss: --columns {','.join([*chosen, column])}"))
    return found


def described(found: Sequence[ColumnReading]) -> list[str]:
    """Lines for the user: the role of each column, and the ignored columns."""
    read = ", ".join(f"{r.column} = {r.role}" if r.column != r.role else r.column for r in found if r.role != "ignored")
    lines = [f"columns read: {read}"]
    ignored = [f"{r.column} ({r.why})" for r in found if r.role == "ignored"]
    return [*lines, f"columns ignored: {', '.join(ignored)}"] if ignored else lines
