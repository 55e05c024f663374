"""What every attention of ours shares that transformers calls in place of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from transformers import PreTrainedConfig

_UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks", "indexer")
"""Arguments of attention variants that are not supported."""


@contextmanager
def used(name: str, config: PreTrainedConfig) -> Iterator[None]:
    """Let the model of a configuration use a registered attention within the block."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def refuse_variants(arguments: Mapping[str, object]) -> None:
    """Check the further arguments of a call of attention.

    Raises:
        NotImplementedError: if the layer needs a variant that is not supported; names it.
    """
    odd = [name for name in _UNKNOWN if arguments.get(name) is not None]
    if odd:
        raise NotImplementedError(f"attention with {', '.join(odd)}")
