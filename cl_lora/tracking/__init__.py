"""Sending a run to experiment trackers: parameters, every score as it is made, results, report.

Nothing here imports a tracker's package before it is asked to connect to it.
"""

from cl_lora.tracking import mlflow_tracker, wandb_tracker  # noqa: F401  they register themselves
from cl_lora.tracking.sending import Sender, Tracking, check, connected
from cl_lora.tracking.tracker import (
    TRACKERS,
    Connection,
    Points,
    TrackedRun,
    Tracker,
    names_of,
    register_tracker,
)

__all__ = [
    "TRACKERS",
    "Connection",
    "Points",
    "Sender",
    "TrackedRun",
    "Tracker",
    "Tracking",
    "check",
    "connected",
    "names_of",
    "register_tracker",
]
