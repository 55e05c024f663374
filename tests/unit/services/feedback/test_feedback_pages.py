"""The pages of the feedback service as a browser without scripts uses them, and hostile texts on them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.feedback.pages.markdown import rendered
from tests.feedback_service import Caller, feedback, task

FORM = "application/x-www-form-urlencoded"
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) <javascript:alert(1)> [y](https://evil.example/?x=<b>)",
    "![x](https://evil.example/pixel.png)",
    "<!-- --><style>*{display:none}</style>",
    "\u202egnp.exe \x00 \x1b[31m",
    "``` \n</textarea><script>x</script>\n```",
    '"><svg/onload=alert(1)>',
)


async def post(caller: Caller, path: str, **fields: str):
    return await caller.ask("POST", path, urlencode(fields).encode(), content_type=FORM)


async def test_labeler_signs_in_ranks_skips_and_signs_out_without_a_script(tmp_path: Path) -> None:
    kinds = ["rank", "write", "edit"]
    async with feedback(tmp_path, project__kinds=kinds) as http:
        caller = http.local
        home = await caller.ask("GET", "/")
        assert (home.status, b"Sign in" in home.body) == (200, True)
        assert (await caller.ask("GET", "/work/default")).headers["location"] == "/sign-in"
        done = await post(caller, "/sign-in", handle="anna")
        assert (done.status, done.headers["location"]) == (303, "/")
        caller.headers["cookie"] = done.headers["set-cookie"].partition(";")[0]
        assert b'href="/work/default"' in (await caller.ask("GET", "/")).body
        assert b"Nothing to do" in (await caller.ask("GET", "/work/default")).body

        answers = [*HOSTILE]
        tasks = [{"prompt": HOSTILE[0], "responses": answers}, task(2)]
        tasks += [{"prompt": "p", "kind": "edit", "responses": ["</textarea><b>x"]}]
        await caller.post("/tasks", {"tasks": tasks})
        page = await caller.ask("GET", "/work/default")
        html = page.body.decode()
        assert "default-src 'none'" in page.headers["content-security-policy"]
        tags = set(re.findall(r"<\s*(script|img|svg|style|iframe|a)\b([^>]*)", html))
        assert {name for name, _ in tags} == {"a"}
        assert {attributes for _, attributes in tags} == {' class="home" href="/"'}
        place = re.search(r'action="(/work/default/[0-9a-f]+)"', html)
        assert place is not None
        names = list(dict.fromkeys(re.findall(r'name="(rank\.[0-9a-f]+)"', html)))
        assert len(names) == len(answers)
        incomplete = await post(caller, place[1], **{names[0]: "2"}, note="<b>kept</b>")
        assert incomplete.status == 400
        assert b"allowed: a place for every answer" in incomplete.body
        assert b"&lt;b&gt;kept&lt;/b&gt;" in incomplete.body
        assert len(re.findall(rb" checked>", incomplete.body)) == 1
        ranked = await post(caller, place[1], **dict.fromkeys(names, "1"))
        assert (ranked.status, ranked.headers["location"]) == (303, "/work/default")

        second = (await caller.ask("GET", "/work/default")).body.decode()
        place = re.search(r'action="(/work/default/[0-9a-f]+)"', second)
        assert place is not None
        assert (await post(caller, place[1], do="skip", reason="bored")).status == 400
        assert (await post(caller, place[1], do="skip", reason="unclear")).status == 303
        edit = (await caller.ask("GET", "/work/default")).body.decode()
        assert "&lt;/textarea&gt;&lt;b&gt;x</textarea>" in edit
        place = re.search(r'action="(/work/default/[0-9a-f]+)"', edit)
        assert place is not None
        assert (await post(caller, place[1], text="better\r\nanswer")).status == 303
        said = [one["said"] for one in (await caller.get("/judgments"))["judgments"]]
        assert set(said[0]["ranks"].values()) == {1}
        assert said[1]["text"] == "better\nanswer"
        assert said[1]["base"] is not None

        foreign = await caller.ask("POST", "/sign-out", b"", origin="https://evil.example", content_type=FORM)
        assert foreign.status == 403
        assert (await post(caller, "/sign-out")).headers["location"] == "/sign-in"
        assert (await caller.ask("GET", "/work/default")).status == 303
        style = await caller.ask("GET", "/static/page.css")
        assert (style.status, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
        assert (await caller.ask("GET", "/static/..%2frendering.py")).status == 401


async def test_invitation_is_used_by_the_form_and_not_by_opening_the_link(tmp_path: Path) -> None:
    async with feedback(tmp_path, root_path="/people") as http:
        person = await http.local.post("/people", {"handle": "ben"})
        link = (await http.local.post(f"/people/{person['id']}/invitation"))["link"]
        assert link.startswith("/people/invitation/")
        path = link.removeprefix("/people")
        for _ in range(2):
            assert (await http.local.ask("GET", path)).status == 200
        done = await post(http.local, path)
        assert (done.status, done.headers["location"]) == (303, "/people/")
        again = await post(http.local, path)
        assert (again.status, b"used or expired" in again.body) == (401, True)
        assert b'href="/people/static/page.css"' in again.body


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40)), max_size=6).map("\n".join))
def test_texts_become_no_html_of_their_own(text: str) -> None:
    html = str(rendered(text))
    allowed = (
        "p em strong code pre ul ol li blockquote hr br h1 h2 h3 h4 h5 h6 span table thead tbody tr th td"
    )
    for name, attributes in re.findall(r"<\s*([a-zA-Z!/][\w!-]*)([^>]*)", html):
        assert name.lstrip("/") in allowed.split(), html
        assert not re.search(
            r"\bon\w+\s*=|javascript:|\bsrc\b|\bhref\b", re.sub(r'"[^"]*"', '""', attributes)
        )


@pytest.mark.parametrize("size", [50_001, 200_000])
def test_long_texts_are_shown_as_they_are(size: int) -> None:
    assert str(rendered("<" * size)) == f'<div class="plain">{"&lt;" * size}</div>'
