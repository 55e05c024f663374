"""Whether the attention heads of a model can be divided among ranks. Does not need torch."""

from __future__ import annotations

from fairlead.errors import ConfigError


def undivided_heads(parts: int, *, attention: int | None, key_value: int | None) -> str:
    """Return the heads that cannot be divided, such as `8 key-value heads`; empty if all can be.

    Args:
        parts: number of ranks.
        attention: attention heads of a block; None if there is no such number.
        key_value: heads of keys and values; None if there is no such number.
    """
    for name, number in (("attention heads", attention), ("key-value heads", key_value)):
        if number is not None and number % parts:
            return f"{number} {name}"
    return ""


def check_heads(parts: int, *, attention: int | None, key_value: int | None, model: str, field: str) -> None:
    """Check that heads can be divided.

    Args:
        parts: number of ranks.
        attention: see `undivided_heads`.
        key_value: see `undivided_heads`.
        model: name of the model, for the error.
        field: the setting that asks for it.

    Raises:
        ConfigError: if they cannot be divided.
    """
    found = undivided_heads(parts, attention=attention, key_value=key_value)
    if found:
        raise ConfigError(field, got=parts, allowed=f"a number that divides the {found} of {model}")
