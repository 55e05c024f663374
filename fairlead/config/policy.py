"""`[policy]`: the service that generates, and the model that PPO trains."""

from __future__ import annotations

from pydantic import Field

from fairlead.config.compute import ModelServiceSection


class PolicySection(ModelServiceSection):
    """Generation from the policy."""

    max_slots: int = Field(default=32, ge=1, le=4_096)
    """Sequences decoded at the same time."""
    max_samples: int = Field(default=64, ge=1, le=4_096)
    """Completions of one request at most."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Prompt and answer tokens waiting for a slot at most."""
    watch_seconds: float = Field(default=0.2, gt=0, le=60)
    """How often the weight store is asked for a newer version."""
    serve_initial: bool = False
    """Serve the model at `path` as version 0-0 without waiting for the weight store (no training run)."""
