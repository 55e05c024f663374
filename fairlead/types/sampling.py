"""How completions are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a completion is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass kept, in (0, 1]."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""
    max_new_tokens: int = 64
    """Tokens generated at most."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion and stay part of it; the model's own EOS ids always count."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion at the token that completes them."""
    seed: int = 0
    """Seed of the draw."""
