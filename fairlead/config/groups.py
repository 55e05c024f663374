"""The limits of the services that `ppo.num_samples` must fit: the answers of a prompt travel in one request.

Knows names and values of settings only, as `determinism` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fairlead.errors import ConfigError

if TYPE_CHECKING:
    from fairlead.config.run import RunConfig


def check(config: RunConfig) -> None:
    """Check that the services take the answers of a prompt in one request.

    Raises:
        ConfigError: for the first limit that is too low; names it.
    """
    wanted = config.ppo.num_samples
    for key, limit, samples, what in _limits(config):
        if wanted > 1 and samples < wanted:
            raise ConfigError(
                "ppo.num_samples",
                got=wanted,
                allowed=f"at most {samples}, because {key} = {limit} limits {what}; lower ppo.num_samples or "
                f"raise {key}",
            )


def _limits(config: RunConfig) -> Iterator[tuple[str, int, int, str]]:
    """Yield each limit: its key, its value, the answers per prompt that fit, and what it limits."""
    yield (
        "policy.max_samples",
        config.policy.max_samples,
        config.policy.max_samples,
        "the answers of a request",
    )
    if not config.deterministic:  # which decodes one answer at a time
        slots = config.policy.max_slots
        yield "policy.max_slots", slots, slots, "the answers that are decoded at a time"
    longest = config.sampling.max_new_tokens
    for name, batching in (("reward", config.reward.batching), ("reference", config.reference.batching)):
        items, tokens = batching.max_items, batching.max_queue_tokens
        yield f"{name}.batching.max_items", items, items, "the items of a request"
        what = f"the tokens of a request, and an answer may have {longest}"
        yield f"{name}.batching.max_queue_tokens", tokens, tokens // longest, what
