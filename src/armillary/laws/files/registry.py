"""The kinds of law that a file can hold, by their stable name in the file.

A new law is an ``Estimator`` and one line here. A name is never given to another law.
"""

from __future__ import annotations

from armillary.laws.anneal.law import AnnealLaw
from armillary.laws.estimator import Estimator
from armillary.laws.examination.gain import GainLaw
from armillary.laws.examination.law import ExaminationLaw
from armillary.laws.hyperparameters.law import HyperparameterLaw
from armillary.laws.mixture.law import MixtureLaw
from armillary.laws.scaling.law import ScalingLaw

LAWS: dict[str, type[Estimator]] = {
    "scaling": ScalingLaw,
    "hyperparameters": HyperparameterLaw,
    "mixture": MixtureLaw,
    "anneal": AnnealLaw,
    "examination": ExaminationLaw,
    "gain": GainLaw,
}

# The first LAWS_VERSION whose fitted values of a kind have their present meaning. Annealing laws of earlier versions
# took each size's highest rate as the unit of rates and had no exponent of it.
FIRST_VERSION = {"anneal": 3}
