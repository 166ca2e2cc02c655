"""The data order that an objective names."""

from __future__ import annotations

from armillary.corpus.batch import DataOrder
from armillary.corpus.order import TokenOrder
from armillary.corpus.shards import Corpus
from armillary.corpus.supervised import SupervisedOrder
from armillary.recipe import RunSpec, Supervised, UsageError


def data_order(spec: RunSpec, corpus: Corpus) -> DataOrder:
    """The batches of the run ``spec`` over ``corpus``.

    Raises:
        UsageError: the corpus has not what the run reads, or this version cannot train its objective.
        DamagedFileError, ForeignFileError: as ``open_examples``.
    """
    if isinstance(spec.objective, Supervised):
        return SupervisedOrder.of(spec, corpus)
    if spec.objective.kind == "preference":
        raise UsageError(
            "objective 'preference' cannot be trained by this version, which trains 'next-token' and 'supervised'; "
            "preferences come with post-training"
        )
    return TokenOrder.of(spec, corpus)
