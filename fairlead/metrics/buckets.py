"""Bucket bounds of histograms."""

from __future__ import annotations

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets of every histogram of seconds."""
LONG_SECONDS = (*SECONDS, 300.0, 600.0)
"""Buckets of calls that may generate long answers."""
AGES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0)
"""Buckets of the age of rollouts in seconds."""
