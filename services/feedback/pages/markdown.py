"""Texts of models and people as HTML: Markdown without HTML, images and live links."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

_LONGEST = 50_000
"""Characters above which a text is shown as it is: parsing takes longer than reading needs."""


def _link_open(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: object, _env: object
) -> str:
    # Where a link leads is shown, and nothing happens on a click.
    return f'<span class="link" title="{escape(str(tokens[index].attrs.get("href", "")))}">'


def _link_close(
    _self: RendererHTML, _tokens: Sequence[Token], _index: int, _options: object, _env: object
) -> str:
    return "</span>"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table").disable("image")
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("link_close", _link_close)
    return parser


_PARSER = _parser()


def rendered(text: str) -> Markup:
    """Return the HTML of a text."""
    if len(text) > _LONGEST:
        return plain(text)
    return Markup(_PARSER.render(text))


def plain(text: str) -> Markup:
    """Return the HTML of a text as it is, with its line ends."""
    return Markup(f'<div class="plain">{escape(text)}</div>')
