"""The events of a run (contract 3), the ledger of its time, formulas, and simulations. Imports no torch."""

from armillary.goodput.cluster import PUBLISHED_CAUSES, Cause, Cluster, Lemons, Repair, Stragglers, Tier
from armillary.goodput.events import (
    Event,
    EventKind,
    EventWriter,
    event_files,
    first_start_s,
    read_events,
    recent_events,
    write_events,
)
from armillary.goodput.formula import (
    Reliability,
    best_goodput,
    best_interval,
    daly_interval,
    goodput,
    largest_block,
    largest_recovery,
    needed_mtbf,
    young_interval,
)
from armillary.goodput.ledger import ACCOUNTS, DEFINITION, Account, Ledger, Span, ledger, read_ledger
from armillary.goodput.measured import ALLOWED, compare
from armillary.goodput.scenario import cluster_of, limits_of, run_simulation
from armillary.goodput.simulate import one_tier, simulate

__all__ = [
    "ACCOUNTS",
    "ALLOWED",
    "DEFINITION",
    "PUBLISHED_CAUSES",
    "Account",
    "Cause",
    "Cluster",
    "Event",
    "EventKind",
    "EventWriter",
    "Ledger",
    "Lemons",
    "Reliability",
    "Repair",
    "Span",
    "Stragglers",
    "Tier",
    "best_goodput",
    "best_interval",
    "cluster_of",
    "compare",
    "daly_interval",
    "event_files",
    "first_start_s",
    "goodput",
    "largest_block",
    "largest_recovery",
    "ledger",
    "limits_of",
    "needed_mtbf",
    "one_tier",
    "read_events",
    "read_ledger",
    "recent_events",
    "run_simulation",
    "simulate",
    "write_events",
    "young_interval",
]
