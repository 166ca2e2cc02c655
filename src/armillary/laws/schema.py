"""What law files hold: the classes that come to life from one, and the attributes that each must have.

A file of another version of the code may lack an attribute or have one more; it is refused when it is read rather than
when a prediction needs it. A class that is not listed is never made. Whoever changes a listed class changes its line
here, and gives attributes that older files lack a value in ``SINCE``.
"""

from __future__ import annotations

import numpy as np

from armillary.laws.anneal import AnnealLaw, HeldOutCurve
from armillary.laws.anneal_forms import Frame, Joint
from armillary.laws.curves import Curve, CurveSetAside
from armillary.laws.estimator import SetAside
from armillary.laws.forms import BoostedTrees, GaussianProcess, Linear
from armillary.laws.hyperparameters import HeldOutGrid, HyperparameterLaw
from armillary.laws.mixture import HeldOut, MixtureLaw
from armillary.laws.mixture_forms import EffectiveData, Exponential
from armillary.laws.mixture_noise import RunNoise
from armillary.laws.scaling import LeftOut, Member, ScalingLaw

KINDS: dict[str, type] = {
    "scaling": ScalingLaw,
    "hyperparameters": HyperparameterLaw,
    "mixture": MixtureLaw,
    "anneal": AnnealLaw,
}

ATTRIBUTES: dict[type, str] = {
    ScalingLaw: "form features bootstraps seed max_extrapolation features_ size_columns_ log_points_ form_ weights_ "
    "parameters_ draws_ noise_ miss_per_efold_ holdout_error_ held_out_ set_aside_ _single _members _noise _tilt "
    "_range _freedom _miss _miss_freedom _wide",
    Member: "form weight theta draws precision",
    LeftOut: "what rows predicted measured extrapolation",
    SetAside: "row target value expected",
    HyperparameterLaw: "form bootstraps seed form_ parameters_ draws_ identified_ noise_ shared_noise_ pair_std_ "
    "place_std_ miss_per_efold_ diverged_ held_out_ _ceiling _centre _draws _far _freedom _miss_freedom _most "
    "_most_compute _offset_std _offsets _pairs _theta",
    HeldOutGrid: "what form rows predicted measured extrapolation regret shape_error",
    MixtureLaw: "models bootstraps seed held_out_ chosen_ noise_ sizes_ mixtures_ run_sizes_ run_tokens_ "
    "set_aside_ _along _top _bend _borrows "
    "_correlation _design _forms _freedom _noise _pick _reach _reaches _span",
    HeldOut: "predicted measured spearman rmse rmse_of_model",
    RunNoise: "coefficients_ scale_ _high _low _middle _width",
    Linear: "_centre _coefficients _draws _draws_middle _middle _penalty _s _span _vt",
    GaussianProcess: "_X _alpha _constant _count _frequencies _length _linear _noise _path_constants _paths _phases "
    "_scale _sizes _span _weights",
    BoostedTrees: "_frequencies _miss _phases _trees _trend _weights",
    EffectiveData: "_draws _theta",
    Exponential: "_draws _theta",
    AnnealLaw: "form warmup_steps bootstraps seed sizes_ parameters_ weights_ held_out_ noise_ scale_ unit_steps_ "
    "lowest_rate_ set_aside_ _curves _frame _freedom _highest _joints _longest _loss_std",
    HeldOutCurve: "name size step predicted measured error new_size",
    Joint: "form frame z draws noise freedom",
    Frame: "size peak loss centre unit warmup_steps",
    Curve: "name size step lr loss warmup_steps",
    CurveSetAside: "name size step why",
}

# Values of attributes that files of an older version lack.
SINCE: dict[type, dict[str, object]] = {
    ScalingLaw: {"set_aside_": []},
    AnnealLaw: {"set_aside_": []},
    MixtureLaw: {"run_tokens_": np.empty(0), "set_aside_": [], "_along": np.array([1.0, 0.0]), "_top": None},
}

NAMES = {f"{kind.__module__.rpartition('.')[2]}:{kind.__qualname__}": kind for kind in ATTRIBUTES}
