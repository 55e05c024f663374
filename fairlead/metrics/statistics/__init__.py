"""What each statistic of a training stage means.

The names are those of `metrics_<stage>.jsonl` and of the label `name` of `fairlead_trainer_statistic` and
`fairlead_stage_figure`. Each file has those of one subject; `table` joins them. Knows nothing about how a
statistic is computed or shown.
"""

from __future__ import annotations

from fairlead.metrics.statistics.entry import Statistic
from fairlead.metrics.statistics.table import SIGNALS, STATISTICS, find

__all__ = ["SIGNALS", "STATISTICS", "Statistic", "find"]
