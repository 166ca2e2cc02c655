"""The data order that an objective names."""

from __future__ import annotations

from armillary.corpus.batch import DataOrder
from armillary.corpus.order import TokenOrder
from armillary.corpus.preference import PreferenceOrder
from armillary.corpus.shards import Corpus
from armillary.corpus.supervised import SupervisedOrder
from armillary.recipe import Preference, RunSpec, Supervised


def data_order(spec: RunSpec, corpus: Corpus) -> DataOrder:
    """The batches of the run ``spec`` over ``corpus``.

    Raises:
        UsageError: the corpus lacks data that the run reads, or the run does not fit the corpus.
        DamagedFileError, ForeignFileError: as ``open_examples`` and ``open_pairs``.
    """
    if isinstance(spec.objective, Supervised):
        return SupervisedOrder.of(spec, corpus)
    if isinstance(spec.objective, Preference):
        return PreferenceOrder.of(spec, corpus)
    return TokenOrder.of(spec, corpus)
