"""What the tests of deployment share."""

from __future__ import annotations

from local_cluster import _cluster as _cluster
