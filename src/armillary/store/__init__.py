"""The run store: runs, studies, predictions, rates and lineage in a database beside a folder. Imports no torch."""

from armillary.store.base import iso_time, to_json
from armillary.store.chain import Chain
from armillary.store.database import secrets
from armillary.store.facts import facts_of
from armillary.store.locks import in_use
from armillary.store.predictions import Order
from armillary.store.reader import Key, ListedRun, Outcome, Reader, RecordedPrediction, RunFilter, StudyState
from armillary.store.runs import State
from armillary.store.stages import EXAMINATION
from armillary.store.store import Store, verify_database

__all__ = [
    "EXAMINATION",
    "Chain",
    "Key",
    "ListedRun",
    "Order",
    "Outcome",
    "Reader",
    "RecordedPrediction",
    "RunFilter",
    "State",
    "Store",
    "StudyState",
    "facts_of",
    "in_use",
    "iso_time",
    "secrets",
    "to_json",
    "verify_database",
]
