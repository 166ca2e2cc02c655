"""From text domains to token shards, and the order in which a run reads them (contract 2). Imports no torch."""

from armillary.corpus.batch import Batch, DataOrder
from armillary.corpus.build import build_corpus
from armillary.corpus.demo import DEMO_DOMAINS, DemoDomain
from armillary.corpus.examples import Example, Examples, open_examples, write_examples
from armillary.corpus.manifest import DomainManifest, Manifest, ShardFile
from armillary.corpus.matching import KnownItem, KnownItems, Match, masked_numbers, similarity
from armillary.corpus.near import text_units, unit_grams
from armillary.corpus.order import TokenOrder
from armillary.corpus.orders import data_order
from armillary.corpus.overlap import Overlap, find_overlap
from armillary.corpus.pairs import Pair, Pairs, open_pairs, write_pairs
from armillary.corpus.preference import PreferenceOrder
from armillary.corpus.shards import Corpus, ValidationSet
from armillary.corpus.supervised import SupervisedOrder
from armillary.corpus.texts import held_out_texts, training_texts
from armillary.corpus.verify import verify_corpus
from armillary.corpus.vocabulary import write_vocabulary

__all__ = [
    "DEMO_DOMAINS",
    "Batch",
    "Corpus",
    "DataOrder",
    "DemoDomain",
    "DomainManifest",
    "Example",
    "Examples",
    "KnownItem",
    "KnownItems",
    "Manifest",
    "Match",
    "Overlap",
    "Pair",
    "Pairs",
    "PreferenceOrder",
    "ShardFile",
    "SupervisedOrder",
    "TokenOrder",
    "ValidationSet",
    "build_corpus",
    "data_order",
    "find_overlap",
    "held_out_texts",
    "masked_numbers",
    "open_examples",
    "open_pairs",
    "similarity",
    "text_units",
    "training_texts",
    "unit_grams",
    "verify_corpus",
    "write_examples",
    "write_pairs",
    "write_vocabulary",
]
