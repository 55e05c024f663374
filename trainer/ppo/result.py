"""The final figures of PPO, counted from what is on the disk and not from counters in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from fairlead.config import RunConfig
from fairlead.transports.weights.base import Ancestor
from trainer import stage
from trainer.ppo import ledger as ledgers
from trainer.ppo.progress import Progress


def summarise(
    config: RunConfig,
    *,
    progress: Progress,
    lineage: Sequence[Ancestor],
    seconds: float,
) -> dict[str, object]:
    """What `result_ppo.json` holds.

    Args:
        config: the run.
        progress: that of the last checkpoint. Fewer updates than asked for if a guard stopped the run; tasks
            that were under way then were given up with it, and count nowhere.
        lineage: incarnations that made the final weights.
        seconds: time spent, in the lineage of the final weights.
    """
    updates = progress.update
    given_up = len(progress.open_tasks()) if updates < config.ppo.updates else 0
    found = ledgers.audit(
        config.folder.ledger,
        ledger=progress.ledger,
        cursor=progress.cursor,
        lineage=lineage,
        open_tasks=given_up,
    )
    # After a stop the next row is that of the final weights' own answers; what follows was given up.
    curves = [line for line in _metrics(config) if line["step"] <= updates + 1]
    first, last = (found.scores.get(update, ()) for update in (0, updates - 1))
    return {
        "updates": updates,
        "episodes": found.trained,
        "tasks_dispatched": progress.cursor - given_up,
        "tasks_trained": found.trained,
        "tasks_duplicated": found.duplicated,
        "tasks_lost": found.lost,
        "dead_letters": found.dead_letters,
        "proxy_first": _mean(first),
        "proxy_last": _mean(last),
        "kl": curves[-1].get("kl") if curves else None,
        "mismatch_max": max((line.get("mismatch_max") or 0.0 for line in curves), default=None),
        "tokens": sum(line.get("tokens") or 0.0 for line in curves),
        "seconds": seconds,
        "incarnations": len(lineage),
        "config_hash": stage.config_hash("ppo", config),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _metrics(config: RunConfig) -> list[dict[str, float]]:
    path = config.folder.metrics("ppo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
