"""Law files of versions 1 and 2, which held private attributes under ``module:Class``, as fields of version 3.

The tables below are frozen and map each attribute of those files to its current name. Attributes that follow from
others, or that no prediction needs, are left out.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from armillary.laws.values import Array, ValueInFileError

# For each class: ``attribute:field``, or ``attribute`` alone if the field has the same name without underscores. An
# empty field means that the attribute is left out. A ``?`` marks attributes that version 1 may lack.
_LAWS = {
    "scaling:ScalingLaw": "features_ log_points_ _single:single_target _noise _tilt:noise_tilt _range:log_loss_range "
    "_freedom:noise_freedom _miss:miss_per_efold _miss_freedom _wide:interval_scale _members:forms "
    "holdout_error_:left_out held_out_:left_out_by_form set_aside_? size_columns_: form_: weights_: parameters_: "
    "draws_: noise_: miss_per_efold_:",
    "hyperparameters:HyperparameterLaw": "form_ _theta _draws _centre identified_ noise_ "
    "shared_noise_:noise_of_batch_size _far:noise_in_basin _freedom:noise_freedom pair_std_ place_std_ _pairs "
    "_offsets:pair_offsets _offset_std:pair_offset_std miss_per_efold_ _miss_freedom _most:largest_log_sizes "
    "_most_compute:largest_log_compute _ceiling:log_loss_ceiling diverged_ held_out_:left_out parameters_: draws_:",
    "mixture:MixtureLaw": "mixtures_ run_sizes_ run_tokens_? sizes_ held_out_:left_out _noise "
    "_correlation:noise_correlation _freedom:noise_freedom chosen_:weights _forms _pick:form_of_draw "
    "_bend:bend_of_draw _reaches:reach_of_draw _reach _along?:scale_direction _top?:largest_log_scale "
    "_span:fitted_e_folds _borrows:one_form_moves_all set_aside_? _design: noise_:",
    "anneal:AnnealLaw": "sizes_ _frame:units weights_ _joints:forms noise_ scale_:interval_scale _freedom "
    "_loss_std:loss_std_of_new_size _highest:highest_log_loss _longest:longest_area lowest_rate_ _curves "
    "held_out_:left_out set_aside_? parameters_: unit_steps_:",
}
_PARTS = {
    "scaling:Member": "form weight theta draws precision",
    "scaling:LeftOut": "what rows predicted measured extrapolation",
    "estimator:SetAside": "row target value expected",
    "hyperparameters:HeldOutGrid": "what form rows predicted measured extrapolation regret shape_error",
    "mixture:HeldOut": "predicted measured spearman rmse rmse_of_model",
    "mixture_noise:RunNoise": "coefficients_ scale_ _high _low _middle _width",
    "forms:Linear": "_centre _coefficients _draws _draws_middle _middle _span _penalty: _s: _vt:",
    "forms:GaussianProcess": "_X:mixtures _alpha _constant _count:draw_count _frequencies _length _linear "
    "_path_constants _paths _phases _scale _sizes _span _weights _noise:",
    "forms:BoostedTrees": "_frequencies _phases _trees _trend _weights _miss:",
    "mixture_forms:EffectiveData": "_draws _theta",
    "mixture_forms:Exponential": "_draws _theta",
    "anneal:HeldOutCurve": "name size step predicted measured error new_size",
    "anneal_forms:Joint": "z draws noise freedom form: frame:",
    "anneal_forms:Frame": "size peak loss centre unit warmup_steps",
    "curves:Curve": "name size step lr loss warmup_steps",
    "curves:CurveSetAside": "name size step why",
}
_PARAMS = {
    "scaling:ScalingLaw": ("form", "features", "bootstraps", "seed", "max_extrapolation"),
    "hyperparameters:HyperparameterLaw": ("form", "bootstraps", "seed"),
    "mixture:MixtureLaw": ("models", "bootstraps", "seed"),
    "anneal:AnnealLaw": ("form", "warmup_steps", "bootstraps", "seed"),
}
_EMPTY = {"dtype": "<f8", "shape": [0], "data": []}
_SINCE: dict[str, Any] = {
    "set_aside": [],
    "run_tokens": _EMPTY,
    "scale_direction": {"dtype": "<f8", "shape": [2], "data": [1.0, 0.0]},
    "largest_log_scale": None,
}
_KEYS = ("summary", "kind", "features", "targets", "size_column", "sources", "law")


def whole(document: dict[str, Any]) -> bool:
    """Whether a document of version 1 or 2 is unchanged since it was written."""
    body = {key: document.get(key) for key in _KEYS}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return seal == document.get("sha256") and document.keys() == {"format", "version", "sha256", *_KEYS}


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """The fields of version 3 of a whole document of version 1 or 2; ``predictions`` is None for version 1.

    Raises:
        ValueInFileError: its fields are not those of these versions.
    """
    held, summary = document["law"], document["summary"]
    if not isinstance(held, dict) or not isinstance(summary, dict):
        raise ValueInFileError("its law or its summary is not an object")
    where, attributes = held.get("object"), held.get("attributes")
    if not isinstance(where, str) or where not in _LAWS or not isinstance(attributes, dict):
        raise ValueInFileError(f"it contains a {where!r}, which is not a law of versions 1 and 2")
    names = _PARAMS[where]
    lacking = [name for name in names if name not in attributes]
    if lacking:
        raise ValueInFileError(f"its {where} lacks {', '.join(lacking)}")
    rest = {name: value for name, value in attributes.items() if name not in names}
    fitted = _renamed(where, _LAWS[where], rest)
    if where == "mixture:MixtureLaw" and fitted["largest_log_scale"] is None:
        sizes = Array("s").read(fitted["sizes"], "sizes_", {})
        fitted["largest_log_scale"] = float(np.log(sizes[-1])) if len(sizes) else 0.0
    predictions = held.get("predictions")
    return {
        **{name: document[name] for name in ("kind", "features", "targets", "size_column", "sources")},
        "program": None,
        "laws_version": held.get("laws_version"),
        "tokens_column": held.get("tokens_column"),
        "columns": summary.get("columns", []),
        "set_aside": summary.get("set_aside", []),
        "params": {name: _plain(attributes[name]) for name in names},
        "fitted": fitted,
        "predictions": None if document["version"] == 1 else _plain(predictions),
    }


def _plain(value: Any) -> Any:
    """A value of the old notation in the new one."""
    match value:
        case {"float": text}:
            return text
        case {"array": array}:
            return array
        case [*parts] | {"tuple": [*parts]}:
            return [_plain(part) for part in parts]
        case {"dict": [*pairs]}:
            return {name: _plain(part) for name, part in pairs}
        case {"object": str(where), "attributes": dict(attributes)} if where in _PARTS:
            return _renamed(where, _PARTS[where], attributes)
        case dict():
            raise ValueInFileError(f"it contains a {value.get('object')!r}, which is not part of a law")
    return value


def _renamed(where: str, table: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of one object under the names of fields."""
    fields: dict[str, Any] = {}
    left = dict(attributes)
    for entry in table.split():
        attribute, colon, field = entry.partition(":")
        field = field if colon else attribute.rstrip("?").strip("_")
        name = attribute.rstrip("?")
        if name not in left and not attribute.endswith("?"):
            raise ValueInFileError(f"its {where} lacks '{name}'")
        value = _plain(left.pop(name)) if name in left else _SINCE[field]
        if field:
            fields[field] = value
    if left:
        raise ValueInFileError(f"its {where} has '{min(left)}', which versions 1 and 2 did not have")
    return fields
