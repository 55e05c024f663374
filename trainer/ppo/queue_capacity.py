"""How much the queue can hold at most, in bytes: a rollout's size × what staleness allows.

Said at the start, beside what Redis may use, and shown as a metric. Knows settings, no queue's content.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.errors import QueueUnavailable
from fairlead.transports.rollouts.base import TrainerQueue

logger = logging.getLogger(__name__)

# Of a token: its id (a varint), behaviour and reference log-prob (floats), and text, of which eight bytes are
# much; of a prompt's byte: its text, as turns again, and a token of its own in the worst case.
_TOKEN_BYTES = 3 + 4 + 4 + 8
_PROMPT_BYTES = 1 + 1 + 3
_FIELDS_BYTES = 512
# Redis frees a stream's memory by nodes of so many bytes; an entry that stays can keep one.
_NODE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Room:
    """What a run's keys take at most."""

    open_tasks: int
    """Tasks under way."""
    outcomes: int
    """Outcomes: those of open tasks, and the trained ones that wait for a checkpoint."""
    prompt_bytes: int
    """A prompt's entry."""
    outcome_bytes: int
    """An outcome's entry."""

    @property
    def total_bytes(self) -> int:
        """Everything."""
        prompts = 2 * self.open_tasks * (self.prompt_bytes + _NODE_BYTES)
        return prompts + self.outcomes * (self.outcome_bytes + _NODE_BYTES)


def needed(config: RunConfig, *, longest_prompt_bytes: int) -> Room:
    """The room of a run.

    Rollouts of weights newer than the last checkpoint leave the queue when they are trained, so those that
    wait for one were all under way when it was written: as many as may be open. A prompt that is long in
    coming keeps those behind it in the stream until its batch is due.
    """
    open_tasks = (config.ppo.max_staleness + 1) * config.ppo.batch_size
    prompt_bytes = _FIELDS_BYTES + _PROMPT_BYTES * longest_prompt_bytes
    answer_bytes = _TOKEN_BYTES * config.sampling.max_new_tokens
    return Room(open_tasks, 2 * open_tasks, prompt_bytes, prompt_bytes + answer_bytes)


def tell(
    config: RunConfig,
    queue: TrainerQueue,
    *,
    longest_prompt_bytes: int,
    gauges: metrics.TrainerMetrics | None,
) -> None:
    """Says what the queue may take, and warns if Redis does not have that much."""
    room = needed(config, longest_prompt_bytes=longest_prompt_bytes)
    logger.info(
        "the queue takes %.1f MiB at most: %d tasks under way, %d outcomes of up to %.1f KiB",
        room.total_bytes / 2**20,
        room.open_tasks,
        room.outcomes,
        room.outcome_bytes / 2**10,
    )
    if gauges is not None:
        gauges.queue_bound_bytes.set(room.total_bytes)
    try:
        limit = queue.stats().limit_bytes
    except QueueUnavailable:
        return
    if 0 < limit < room.total_bytes:
        logger.warning(
            "the queue may take %d bytes and Redis has maxmemory %d: raise it, or lower ppo.batch_size, "
            "ppo.max_staleness or sampling.max_new_tokens; when it is full, workers keep what they made",
            room.total_bytes,
            limit,
        )
