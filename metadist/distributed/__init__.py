"""The Ray rim: session, actors, the two seams over them, and runs of whole jobs. No maths."""

import os

# Ray reads these while it is imported. Nothing is sent out; the token is on, and said explicitly, because Ray's
# ports cannot be confined to loopback.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
# What fails because something that it was to read is lost is told by the loop, in one sentence.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
# Ray Train's workers stay in the driver's working folder, where a user's own modules are.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
