"""The maximum size of the queue in bytes: the size of an outcome times the number that staleness allows.

Logged at startup next to the memory that Redis may use, and exported as a metric. Computed from settings, not
from the contents of the queue.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fairlead.config import RunConfig
from fairlead.errors import QueueUnavailable
from fairlead.metrics import TrainerMetrics
from fairlead.transports.rollouts.base import TrainerQueue

logger = logging.getLogger(__name__)

# Per token: its id (a varint), behaviour and reference log-prob (floats), and eight bytes of text, which is
# generous. Per byte of a prompt: its text, the same text in turns, and in the worst case one token.
_TOKEN_BYTES = 3 + 4 + 4 + 8
_PROMPT_BYTES = 1 + 1 + 3
_FIELDS_BYTES = 512
# Redis frees the memory of a stream in nodes of this size; one remaining entry can keep a whole node.
_NODE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class QueueCapacity:
    """The largest number and size of a run's entries in the queue."""

    open_tasks: int
    """Tasks under way."""
    outcomes: int
    """Outcomes: those of open tasks, and trained ones that stay until the next checkpoint."""
    prompt_bytes: int
    """Size of the entry of a prompt."""
    outcome_bytes: int
    """Size of the entry of an outcome."""

    @property
    def total_bytes(self) -> int:
        """Size of all entries together."""
        prompts = 2 * self.open_tasks * (self.prompt_bytes + _NODE_BYTES)
        return prompts + self.outcomes * (self.outcome_bytes + _NODE_BYTES)


def required_capacity(config: RunConfig, *, longest_prompt_bytes: int) -> QueueCapacity:
    """Return the capacity that a run needs.

    Rollouts of weights newer than the last checkpoint leave the queue when they are trained, so the rollouts
    that wait for a checkpoint were all open when the last one was written: at most the number of open tasks.
    A prompt that is answered late keeps later prompts in the stream until its batch is due.
    """
    open_tasks = (config.ppo.max_staleness + 1) * config.ppo.tasks_per_update + config.ppo.extra_tasks
    prompt_bytes = _FIELDS_BYTES + _PROMPT_BYTES * longest_prompt_bytes
    answer_bytes = _TOKEN_BYTES * config.sampling.max_new_tokens
    further = config.ppo.num_samples - 1
    return QueueCapacity(
        open_tasks=open_tasks,
        outcomes=2 * open_tasks,
        prompt_bytes=prompt_bytes,
        outcome_bytes=prompt_bytes + answer_bytes + further * (answer_bytes + _FIELDS_BYTES),
    )


def log_capacity(
    config: RunConfig, queue: TrainerQueue, *, longest_prompt_bytes: int, metrics: TrainerMetrics | None
) -> None:
    """Log the largest size of the queue, and warn if Redis may not use that much memory."""
    capacity = required_capacity(config, longest_prompt_bytes=longest_prompt_bytes)
    logger.info(
        "the queue needs at most %.1f MiB: %d tasks under way, %d outcomes of up to %.1f KiB",
        capacity.total_bytes / 2**20,
        capacity.open_tasks,
        capacity.outcomes,
        capacity.outcome_bytes / 2**10,
    )
    if metrics is not None:
        metrics.queue_bound_bytes.set(capacity.total_bytes)
    try:
        limit_bytes = queue.stats().limit_bytes
    except QueueUnavailable:
        return
    if 0 < limit_bytes < capacity.total_bytes:
        logger.warning(
            "the queue may need %d bytes, but Redis has maxmemory %d: raise maxmemory, or lower "
            "ppo.batch_size, ppo.max_staleness or sampling.max_new_tokens; while Redis is full, workers keep "
            "their results",
            capacity.total_bytes,
            limit_bytes,
        )
