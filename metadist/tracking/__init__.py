"""Experiment tracking: runs in MLflow, metrics in the run's folder, plots.

Importing this package imports neither MLflow nor matplotlib: both take seconds, which the training's
first step must not wait for.
"""

from metadist.tracking.config import VERSION_TAG, TrackingConfig, resolve_uri, uri_scheme
from metadist.tracking.metrics_log import MetricsFile
from metadist.tracking.tracker import NullTracker, RunEnd, Tracker, TrackingReport, open_tracker

__all__ = [
    "VERSION_TAG",
    "MetricsFile",
    "NullTracker",
    "RunEnd",
    "Tracker",
    "TrackingConfig",
    "TrackingReport",
    "open_tracker",
    "resolve_uri",
    "uri_scheme",
]
