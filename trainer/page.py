"""The parts of a report page, and its rendering to HTML by one template.

Filled by `trainer.report` and by the examples. Knows neither a run's folder nor what the figures mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure shown at the top of the page."""

    value: str
    """The figure."""
    label: str
    """Name of the figure, in a few words."""
    meaning: str
    """A sentence that explains it to a first-time reader."""


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
    """Whether it takes the full width of the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first column names the row."""

    columns: tuple[str, ...]
    """Column headings."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""


@dataclass(frozen=True, slots=True)
class PageSection:
    """A heading with its text, pictures and tables."""

    title: str
    """The heading."""
    text: str
    """One paragraph."""
    pictures: tuple[Picture, ...] = ()
    """Pictures, two per row."""
    tables: tuple[Table, ...] = ()
    """Tables, below the pictures."""


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """One answer of a policy."""

    text: str
    """The answer; may be empty."""
    scores: tuple[tuple[str, float], ...] = ()
    """Name and value of each score."""


@dataclass(frozen=True, slots=True)
class PageSample:
    """A prompt and its answers before and after training."""

    prompt: str
    """The prompt."""
    before: PageAnswer
    """Answer of the policy that training started from."""
    after: PageAnswer
    """Answer of the trained policy."""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    """Name of the run."""
    lead: str
    """A paragraph: what was done, and with which result."""
    headlines: tuple[Headline, ...]
    """Three to six figures."""
    sections: tuple[PageSection, ...]
    """Sections in order."""
    samples: tuple[PageSample, ...] = ()
    """Samples, shown after the first section."""
    samples_text: str = ""
    """How the samples were chosen."""
    footer: str = ""
    """What the page was generated from."""


def render(page: Page) -> str:
    """Return the page as one HTML document that refers to no other file or address."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page=page)
