"""Ray Tune over job files: a sweep's space, its trials, its record, and what comes out of it."""

import os

import metadist.distributed  # noqa: F401  sets Ray's environment, which Ray reads while it is imported

# Tune without its own console, loggers, snapshots and Ctrl-C: a sweep has its own of each. Trials without a
# validation (diverged, say) are results.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "60")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
