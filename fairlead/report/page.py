"""The parts of a page, and their rendering to HTML: as a report in one file, or part by part for a live page.

Filled by `sections`, `now` and the examples. Knows neither a run's folder nor what the figures mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

Level = Literal["good", "busy", "warn", "bad"]
"""How a state is shown: all is well, starting or ending, worth a look, wrong."""

_NAME = re.compile("`([^`]+)`")
_NOT_HTML = re.compile("[\0\ud800-\udfff]")
"""Characters that HTML in UTF-8 cannot hold."""


@dataclass(frozen=True, slots=True)
class State:
    """What a run is doing or how it ended, in one sentence, and what is wrong."""

    level: Level
    """How it is shown."""
    word: str
    """The state in a word: running."""
    sentence: str
    """The state in a sentence."""
    findings: tuple[tuple[Level, str], ...] = ()
    """What is wrong, the worst first."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure shown at the top of the page."""

    value: str
    """The figure."""
    label: str
    """Name of the figure, in a few words."""
    meaning: str = ""
    """A sentence that explains it to a first-time reader."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart."""

    title: str
    """What it shows."""
    chart: Markup
    """The chart as `charts` made it."""
    caption: str = ""
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
    levels: tuple[Level, ...] = ()
    """How each row is shown; empty for a table of figures."""
    texts: tuple[str, ...] = ()
    """Columns with text in them, which is aligned to the left."""


@dataclass(frozen=True, slots=True)
class PageSection:
    """A heading with its text, pictures and tables."""

    title: str
    """The heading; unique on the page."""
    text: str
    """One paragraph."""
    pictures: tuple[Picture, ...] = ()
    """Pictures, side by side where there is space."""
    tables: tuple[Table, ...] = ()
    """Tables, below the pictures."""

    @property
    def anchor(self) -> str:
        """Name of the section in links to it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """One answer of a policy."""

    text: str
    """The answer; may be empty."""
    scores: tuple[tuple[str, float], ...] = ()
    """Name and value of each score."""
    who: str = ""
    """Whose answer it is; empty for the name of its side."""


@dataclass(frozen=True, slots=True)
class PageSample:
    """A prompt and its answers before and after training."""

    prompt: str
    """The prompt."""
    before: PageAnswer | None
    """Answer of the policy that training started from; None if it is not known."""
    after: PageAnswer
    """Answer of the trained policy."""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page."""

    title: str
    """Name of the run."""
    lead: str
    """A paragraph: what was done, and with which result."""
    headlines: tuple[Headline, ...]
    """Figures at the top."""
    sections: tuple[PageSection, ...]
    """Sections in order; the samples follow the first one."""
    samples: tuple[PageSample, ...] = ()
    """Answers side by side."""
    samples_text: str = ""
    """How the samples were chosen."""
    footer: str = ""
    """Seed, version, place of the files."""
    state: State | None = None
    """What the run is doing; None for a page that is not about one run."""
    samples_title: str = "Answers before and after"
    """Heading of the samples."""


def render(page: Page) -> str:
    """Return the page as HTML that refers to no other file."""
    return _clean(_template().render(page=page, css=Markup(style()), version=None))


def render_live(page: Page, *, version: str) -> str:
    """Return the page as HTML with style sheet and script at `page.css` and `live.js`.

    Args:
        page: the page.
        version: from which the script continues.
    """
    return _clean(_template().render(page=page, css=None, version=version))


def parts(page: Page) -> dict[str, str]:
    """Return the content of every part of the page that may change, by the id of its element."""
    macros = _environment().get_template("parts.html.j2").module
    found = {
        "state": macros.state(page),  # type: ignore[attr-defined]
        "headlines": macros.headlines(page),  # type: ignore[attr-defined]
        "samples": macros.samples(page),  # type: ignore[attr-defined]
    }
    for section in page.sections:
        found[f"{section.anchor}-text"] = macros.text(section)  # type: ignore[attr-defined]
        found[f"{section.anchor}-pictures"] = macros.pictures(section)  # type: ignore[attr-defined]
        found[f"{section.anchor}-tables"] = macros.tables(section)  # type: ignore[attr-defined]
    return {name: _clean(str(content)) for name, content in found.items()}


@cache
def style() -> str:
    """Return the style sheet."""
    return resources.files("fairlead.report").joinpath("page.css").read_text(encoding="utf-8")


def _clean(html: str) -> str:
    return _NOT_HTML.sub("\ufffd", html)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fairlead.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["with_code"] = _with_code
    return found


def _with_code(text: str) -> Markup:
    """Return text with its `names` as code."""
    return Markup(_NAME.sub(r"<code>\1</code>", str(escape(text))))


def _template() -> Template:
    return _environment().get_template("page.html.j2")
