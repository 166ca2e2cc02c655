"""Trackers: the metrics of runs in TensorBoard, MLflow, Weights & Biases and trackio, while they train or afterwards.

A run's folder is the source: whatever a tracker lacks is read from there. So a tracker that fails loses nothing for
good, and the training process only starts a second process beside it. `importing` reads runs of other
programs; it is imported by itself, since it loads the laws.
"""

from armillary.trackers.destination import NAMES, Destination, chosen_destination, destinations
from armillary.trackers.export import Chosen, Exported, export_runs, run_in, runs_in
from armillary.trackers.follower import Follower
from armillary.trackers.hook import Track
from armillary.trackers.source import RunFiles

__all__ = [
    "NAMES",
    "Chosen",
    "Destination",
    "Exported",
    "Follower",
    "RunFiles",
    "Track",
    "chosen_destination",
    "destinations",
    "export_runs",
    "importing",
    "run_in",
    "runs_in",
]
