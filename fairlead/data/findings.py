"""What `check` finds in the sources of one kind: figures for a table or for JSON, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of a length."""

    median: float
    """Half are longer."""
    p90: float
    """A tenth is longer."""
    p99: float
    """A hundredth is longer."""
    longest: int
    """The longest of all."""


@dataclass(slots=True)
class SourceReport:
    """What stands in the sources of one kind, all of them together."""

    kind: str
    """One of KINDS."""
    sources: tuple[str, ...]
    """Files, folders and datasets, as the run names them."""
    unit: str
    """Of all lengths: `tokens` or `words`."""
    limit: int | None = None
    """Longest sequence that the stage takes, in tokens; None if it is not known or nothing is cut."""
    lines: int = 0
    """Objects and rows, bad ones among them."""
    bad: int = 0
    """Of these, what cannot be read."""
    broken: int = 0
    """Sources that are absent, damaged or empty."""
    errors: list[str] = field(default_factory=list)
    """The first of both: file, line, what stands there, what may."""
    formats: dict[str, int] = field(default_factory=dict)
    """Lines of each format."""
    train: int = 0
    """Lines on the side of training."""
    heldout: int = 0
    """Lines on the other side."""
    prompt: Spread | None = None
    """Lengths of prompts."""
    answer: Spread | None = None
    """Lengths of answers, and of plain text."""
    truncated: int | None = None
    """Sequences that are longer than the limit and lose a part; None without tokens."""
    dropped: int | None = None
    """Sequences that are left out, as their prompt leaves no room for an answer; None without tokens."""
    too_short: int = 0
    """Sentences that end with the prompt, and are left out."""
    duplicates: int = 0
    """Lines that say again what another says."""
    repeated_prompts: int = 0
    """Lines whose prompt has stood before."""
    on_both_sides: int = 0
    """Held-out lines whose prompt is trained on, but for case and white space."""
    elsewhere: int = 0
    """Held-out lines whose prompt another kind of source trains on, but for case and white space."""
    ties: int = 0
    """Pairs of a ranking that compare nothing."""
    all_tied: int = 0
    """Rankings without any other pair; they are left out."""
    alike: int = 0
    """Bad lines whose two answers are the same."""
    empty_answers: int = 0
    """Answers without a word, where they are allowed."""
