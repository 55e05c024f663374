"""Markdown that strangers and models wrote, as HTML that only looks: nothing in it can be followed or loaded.

HTML, images and links appear as they were written, so that a labeler reads the address that a link hides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape

_CHARACTERS = 20_000
"""Longer texts are shown as they are: the parser is not linear in every text."""
_TOO_DEEP = re.compile(r"^[ \t>*+\-\d.)]{61}", re.MULTILINE)
"""Starts of lines that may nest so deep that the parser drops what is inside."""
_TAG = re.compile(r"<[^>]*>")
_LIST_NUMBER = re.compile(r"^([ \t>*+-]*)\d{1,9}(?=[.)](?:[ \t]|$))", re.MULTILINE)
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 4, "h6": 4}


def rendered(text: str) -> Markup:
    """Return a text as HTML."""
    if len(text) <= _CHARACTERS and not _TOO_DEEP.search(text):
        # The parser would drop NUL.
        html = _PARSER.render(text.replace("\0", "\ufffd"))
        if _shows_all(text, html):
            return Markup(html)
    return Markup('<p class="raw">{}</p>').format(text)


def _shows_all(text: str, html: str) -> bool:
    """Return whether every letter and digit of a text is in its HTML, in the same order.

    The parser drops cells beyond the columns of a table. Browsers count the entries of a list themselves.
    """
    visible = iter(unescape(_TAG.sub("", html)))
    return all(letter in visible for letter in _LIST_NUMBER.sub(r"\1", text) if letter.isalnum())


class _Inert(RendererHTML):
    """Writes HTML without headings of the page, inline styles, or anything that a browser acts on."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the start of a heading, which is none of the page."""
        return f'<p class="heading heading-{_HEADINGS[tokens[index].tag]}">'

    def heading_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the end of a heading."""
        return "</p>\n"

    def fence(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return a block of code with the words after its fence."""
        token = tokens[index]
        info = f'<span class="language">{escape(token.info.strip())}</span>' if token.info.strip() else ""
        return f"<pre>{info}<code>{escape(token.content)}</code></pre>\n"

    def code_block(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return a block of code that is indented."""
        return self.fence(tokens, index, options, env)

    def table_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the start of a table, which scrolls where it is too wide."""
        return '<div class="scrolls" role="group" aria-label="Table" tabindex="0"><table>'

    def table_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the end of a table."""
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the start of a cell, without the inline style that aligns it."""
        return "<th>"

    def td_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        """Return the start of a cell, without the inline style that aligns it."""
        return "<td>"


def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": 100}
    found = MarkdownIt("commonmark", options, renderer_cls=_Inert)
    found.enable(["table", "strikethrough"])
    return found.disable(["link", "image", "autolink", "reference", "entity", "html_block", "html_inline"])


_PARSER = _parser()
