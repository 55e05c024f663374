"""Numbers and durations as status, live view and pages write them."""

from __future__ import annotations


def number(value: float) -> str:
    """Return a figure in a few characters: 1,234 · 12.3 · 0.0123 · 1.2e-06."""
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}"
    if size >= 0.001 or size == 0:
        return f"{value:.3g}"
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """Return seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
