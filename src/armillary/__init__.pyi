# For type checkers and editors, which do not see names that are loaded when they are first used.
from armillary.corpus import Corpus as Corpus
from armillary.evaluate import compare as compare
from armillary.laws import AnnealLaw as AnnealLaw
from armillary.laws import HyperparameterLaw as HyperparameterLaw
from armillary.laws import MixtureLaw as MixtureLaw
from armillary.laws import ScalingLaw as ScalingLaw
from armillary.path import Workspace as Workspace
from armillary.recipe import load_recipe as load_recipe
from armillary.store import Store as Store
from armillary.train import train_run as train_run

__version__: str
