"""A report's page: what can stand on one, and the one template that makes it HTML.

Filled by `trainer.report` and by the examples; knows no run folder and no figures of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure that is read first."""

    value: str
    """The figure."""
    label: str
    """What it is of, in a few words."""
    meaning: str
    """A sentence for someone who sees it for the first time."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart."""

    title: str
    """What it shows."""
    source: str
    """Data URI of the image."""
    caption: str
    """How to read it."""
    wide: bool = False
    """As wide as the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first column names the row."""

    columns: tuple[str, ...]
    """Headings."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""


@dataclass(frozen=True, slots=True)
class PageSection:
    """A heading and what belongs under it."""

    title: str
    """The heading."""
    text: str
    """One paragraph."""
    pictures: tuple[Picture, ...] = ()
    """Two in a row."""
    tables: tuple[Table, ...] = ()
    """Below the pictures."""


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """What a policy said."""

    text: str
    """The answer; empty if it said nothing."""
    scores: tuple[tuple[str, float], ...] = ()
    """Name and value of its scores."""


@dataclass(frozen=True, slots=True)
class PageSample:
    """One prompt, answered before and after training."""

    prompt: str
    """What was asked."""
    before: PageAnswer
    """By the policy that training started from."""
    after: PageAnswer
    """By the trained policy."""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    """Name of the run."""
    lead: str
    """A paragraph: what was done, and what came of it."""
    headlines: tuple[Headline, ...]
    """Three to six."""
    sections: tuple[PageSection, ...]
    """In order."""
    samples: tuple[PageSample, ...] = ()
    """Side by side, behind the first section."""
    samples_text: str = ""
    """How the samples were chosen."""
    footer: str = ""
    """What the page was made from."""


def render(page: Page) -> str:
    """The page as one HTML document without any other file or address."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page=page)
