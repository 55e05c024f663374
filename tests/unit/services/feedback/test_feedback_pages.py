"""The pages of the feedback service over real HTTP, as a browser without scripts uses them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.feedback.pages.differences import differences
from services.feedback.pages.markdown import rendered
from services.feedback.pages.sign_in import local_path
from services.feedback.store.records import NewPerson
from tests.feedback_pages import Document, Page, Visitor, check_page
from tests.feedback_service import Feedback, feedback, task

LEAD_PAGES = (
    "/prompts",
    "/projects/default/overview",
    "/projects/default/agreement",
    "/projects/default/labelers",
    "/projects/default/bias",
    "/projects/default/disagreements",
    "/projects/default/tasks",
    "/projects/default/exports",
    "/projects/default/rounds",
    "/projects/default/judges",
    "/forget",
    "/forget?find=a",
    "/people",
    "/audit",
    "/audit?verify=yes",
)
OWN_PAGES = ("/projects/default/quiz", "/", "/projects/default/mine", "/projects/default/guidelines")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Feedback]:
    kinds = ["rank", "pair", "write", "edit", "prompt"]
    shares = {"project__shared_share": 1, "project__gold_share": 1}
    async with feedback(tmp_path, project__kinds=kinds, project__overlap=2, **shares) as found:
        yield found


def places(page: Page, *order: int) -> list[tuple[str, str]]:
    return [(f"place-{place}", str(rank)) for place, rank in enumerate(order, start=1)]


async def test_a_task_is_ranked_revised_and_skipped_without_a_script(service: Feedback) -> None:
    await service.local.post("/tasks", {"tasks": [task(n) for n in range(3)]})
    anna = Visitor(service.address)
    first = await anna.get("/")
    assert (first.status, first.document.all("h1")[0].text) == (401, "Sign in")
    assert "/v1/feedback" not in first.html, "what programs do is not for people"
    assert (await anna.sign_in("no/slash")).status == 400
    home = await anna.sign_in("anna")
    assert "Hello, anna" in home.html
    rank = await anna.post("/projects/default/next")
    assert rank.status == 200
    assert len(rank.document.all("article")) == 3

    # What is missing is named, and what was said is kept.
    incomplete = await anna.post(rank.path, ("place-2", "1"), action="hand_in", **rank.hidden())
    assert incomplete.status == 400
    assert {"#place-1", "#place-3"} <= {one.attributes["href"] for one in incomplete.document.all("a")}
    assert "checked" in incomplete.document.all("input", name="place-2", value="1")[0].attributes

    saved = await anna.post(rank.path, *places(rank, 2, 1, 2), ("flag-1", "opinion"), action="save")
    assert "Draft saved" in saved.html
    assert "checked" in saved.document.all("input", name="flag-1", value="opinion")[0].attributes
    fields = [*places(rank, 2, 1, 2), ("quality-2", "7"), ("flag-1", "opinion"), ("flag-1", "sexual")]
    after = await anna.post(rank.path, *fields, note="first\r\nsecond", **rank.hidden())
    assert re.fullmatch(r"/assignments/[0-9a-f]+\?after=[0-9a-f]{64}", after.path)
    (entry,) = service.service.store.log.entries()
    body = dict(entry.body or {})
    shown = body["shown"]
    assert [body["ranks"][answer] for answer in shown] == [2, 1, 2]
    assert (body["ratings"], body["flags"]) == ({shown[1]: 7}, {shown[0]: ["opinion", "sexual"]})
    assert body["note"] == "first\nsecond"
    again = await anna.post(rank.path, *places(rank, 1, 2, 3), **rank.hidden())
    assert again.path == after.path.partition("?")[0] + f"?after={entry.id}", "the first hand-in counts"

    # Undo leads to the same form with what was said.
    undo = await anna.get(after.document.all("a", id="undo")[0].attributes["href"])
    assert "checked" in undo.document.all("input", name="quality-2", value="7")[0].attributes
    mine = await anna.post(undo.path, *places(undo, 1, 2, 3), **undo.hidden())
    assert "A &gt; B &gt; C" in mine.html
    revised = service.service.store.log.entries()[-1]
    assert (revised.kind, revised.replaces) == ("revision", entry.id)
    gone = await anna.post(f"/judgments/{revised.id}/withdrawal", request="w")
    assert service.service.store.log.entries()[-1].kind == "withdrawal"
    assert "withdrawn" in gone.html
    assert (await anna.post(f"/judgments/{entry.id}", *places(undo, 1, 2, 3))).status == 409

    skipped = await anna.post(f"{after.path.partition('?')[0]}/skip", reason="unclear", note="?")
    assert skipped.status == 200
    assert (await anna.post(f"{skipped.path}/skip", reason="boring")).status == 400
    done = await anna.post(f"{skipped.path}/skip", reason="broken")
    assert "Nothing more to do in default" in done.html
    out = await anna.post("/sign-out")
    assert out.path == "/sign-in"
    assert (await anna.get("/")).status == 401
    for page in anna.pages:
        check_page(page)


async def test_other_kinds_of_tasks_and_the_words_that_differ(service: Feedback) -> None:
    added = [
        task(0, k=2, priority=5),
        task(1, k=2, kind="pair", priority=4),
        task(2, k=0, kind="write", priority=3),
        task(3, k=2, kind="edit", priority=2),
        task(4, k=0, kind="prompt", priority=1),
    ]
    await service.local.post("/tasks", {"tasks": added})
    anna = Visitor(service.address)
    await anna.sign_in("anna")
    two = await anna.post("/projects/default/next")
    pair = await anna.post(two.path, verdict="tie", strength="2", **two.hidden())
    body = dict(service.service.store.log.entries()[-1].body or {})
    assert (set(body["ranks"].values()), body["strength"]) == ({1}, None)
    pair = await anna.get(pair.path.partition("?")[0])
    assert (await anna.post(pair.path, **pair.hidden())).status == 400
    compared = await anna.get(f"{pair.path}/comparison?first=1&second=2")
    assert compared.document.all("ins")[-1].text in "01"
    parts = json.loads((await anna.get(f"{pair.path}/comparison.json?first=1&second=2")).body)["parts"]
    assert [kind for kind, _ in parts] == ["same", "removed", "added"]
    assert (await anna.get(f"{pair.path}/comparison?first=1&second=3")).status == 404
    write = await anna.post(pair.path, verdict="2", strength="3", unacceptable="yes", **pair.hidden())
    body = dict(service.service.store.log.entries()[-1].body or {})
    assert [body["ranks"][answer] for answer in body["shown"]] == [2, 1]
    assert (body["strength"], body["flags"]) == (3, {answer: ["unacceptable"] for answer in body["shown"]})
    assert (await anna.post(write.path, text="an answer", **write.hidden())).status == 400, "not confirmed"
    edit = await anna.post(write.path, text="an answer", own="yes", **write.hidden())
    copied = await anna.post(edit.path, base="2", action="copy", **edit.hidden())
    text = copied.document.all("textarea", name="text")[0].text.removeprefix("\n")
    assert text == edit.document.all("pre", class_="raw")[2].text
    unchanged = {"base": "2", "text": text, "own": "yes"}
    assert (await anna.post(edit.path, **unchanged)).status == 400
    changes = await anna.post(edit.path, **unchanged | {"text": f"{text} better", "action": "changes"})
    assert [one.text for one in changes.document.all("ins")][-1] == " better"
    prompt = await anna.post(edit.path, **unchanged | {"text": f"{text} better"}, **edit.hidden())
    entry = service.service.store.log.entries()[-1]
    assert (entry.body or {})["text"] == f"{text} better"
    last = await anna.post(prompt.path, text="a question", own="yes", **prompt.hidden())
    assert "Nothing more to do" in last.html
    undo = await anna.get(f"/judgments/{entry.id}")
    assert "checked" in undo.document.all("input", name="base", value="2")[0].attributes
    for page in anna.pages:
        check_page(page)


async def test_labelers_see_neither_models_nor_what_others_said(service: Feedback) -> None:
    await service.local.post("/tasks", {"tasks": [task(n, k=4, round=7777) for n in range(6)]})
    lead = Visitor(service.address)
    await lead.sign_in("lead")
    store = service.service.store
    visitors, orders = [], []
    for handle in ("ben", "cara"):
        person = store.people.add(NewPerson("labeler", handle, active=True))
        visitor = Visitor(
            service.address, f"{service.service.cookie.name}={store.people.start_session(person.id)}"
        )
        visitors.append(visitor)
        order = []
        page = await visitor.post("/projects/default/next")
        while "/assignments/" in page.path:
            texts = [one.text for one in page.document.all("pre", class_="raw")][1:]
            reloaded = await visitor.get(page.path)
            assert [one.text for one in reloaded.document.all("pre", class_="raw")][1:] == texts
            order.append(tuple(texts))
            note = f"note of {handle}"
            page = await visitor.post(page.path, *places(page, 4, 3, 2, 1), note=note, **page.hidden())
        orders.append(order)
        for path in OWN_PAGES:
            assert (await visitor.get(path)).status == 200
        for path in LEAD_PAGES:
            assert (await visitor.get(path)).status == 403, path
    assert len(orders[0]) == 6
    assert orders[0] != orders[1], "each sees an order of their own"
    for page in visitors[1].pages:
        check_page(page)
        for secret in (b"secret", b"7777", b"note of ben", b"ben"):
            assert secret not in page.body, (page.path, secret)
    other = next(page.path for page in visitors[0].pages if page.path.startswith("/assignments/"))
    assert (await visitors[1].get(other)).status == 404


async def test_pages_of_leads_with_and_without_judgments(service: Feedback) -> None:
    lead = Visitor(service.address)
    await lead.sign_in("lead")
    for path in (*OWN_PAGES, *LEAD_PAGES):
        assert (await lead.get(path)).status == 200, path
    boundary = "sep"
    lines = "".join(json.dumps(task(n, k=3)) + "\n" for n in range(4))
    body = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="kind"\r\n\r\nrank\r\n--{boundary}\r\n'
        f'content-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{lines}'
        f"\r\n--{boundary}--\r\n"
    )
    headers = {"cookie": lead.cookie, "content-type": f"multipart/form-data; boundary={boundary}"}
    answer = await asyncio.to_thread(upload, service.address, body, headers)
    assert answer == (303, "/projects/default/tasks?added=4")
    invited = await lead.post("/people", handle="dora", role="labeler", cohort="heldout")
    link = invited.document.all("input", id="link")[0].attributes["value"]
    dora = Visitor(service.address)
    welcome = await dora.get(link)
    assert "invited" in welcome.html
    assert (await dora.post("/invitation", **welcome.hidden())).status == 200
    assert (await Visitor(service.address).post("/invitation", **welcome.hidden())).status == 401, "used"
    for visitor, order in ((lead, (1, 2, 3)), (dora, (3, 2, 1))):
        page = await visitor.post("/projects/default/next")
        while "/assignments/" in page.path:
            page = await visitor.post(page.path, *places(page, *order), **page.hidden())
    await lead.post("/projects/default/guidelines", text="# Be kind\n\nPrefer short answers.")
    await lead.post("/projects/default/guidelines", text="# Be kind\n\nPrefer clear answers.")
    assert "Read the guidelines" in (await dora.get("/")).html
    await dora.post("/projects/default/guidelines/1/reading")
    assert "version=2&amp;since=1" in (await dora.get("/")).html
    changed = await dora.get("/projects/default/guidelines?version=2&since=1")
    assert [one.text for one in changed.document.all("del")][-1] == "short"
    made = await lead.post(
        "/projects/default/exports", ("cohort", "train"), ("kind", "labeler"), what="rankings"
    )
    assert "4 judgments" in made.html
    nothing = await lead.post(
        "/projects/default/exports", ("cohort", "train"), ("kind", "judge"), what="rankings"
    )
    assert nothing.status == 400
    file = next(
        one.attributes["href"] for one in made.document.all("a") if ".rankings" in one.attributes["href"]
    )
    assert (await lead.get(file)).status == 200
    lead.pages.pop()
    listed = await lead.get("/projects/default/disagreements")
    looks = [
        one.attributes["href"] for one in listed.document.all("a") if "/tasks/" in one.attributes["href"]
    ]
    looks = [path for path in looks if not path.endswith("/tasks")]
    assert looks
    decided = await lead.post(looks[0], *places(listed, 1, 2, 2), note="because", request="d")
    assert "Decided by lead" in decided.html
    assert (await lead.post(looks[0], note="incomplete")).status == 400
    changed = await lead.post(f"{looks[0]}/change", state="withdrawn")
    assert "Reopen" in changed.html
    person = service.service.store.people.by_handle("dora")
    await lead.post(f"/people/{person.id}", state="paused")
    assert (await dora.get("/")).status == 401
    assert (
        await lead.post(f"/people/{service.service.store.people.by_handle('lead').id}", state="paused")
    ).status == 400
    for path in (*OWN_PAGES, *LEAD_PAGES):
        page = await lead.get(path)
        assert page.status == 200, path
    assert "Everything verifies" in page.html
    for page in (*lead.pages, *dora.pages):
        check_page(page)


async def test_quiz_and_screening(service: Feedback) -> None:
    gold = {"why": "gold", "gold": {"ranks": [1, 2, 2], "explanation": "It is <b>short</b>."}}
    await service.local.post("/tasks", {"tasks": [task(n, **gold) for n in range(2)]})
    store = service.service.store
    project = store.projects.get("default").id
    lead = Visitor(service.address)
    await lead.sign_in("lead")
    await lead.post("/projects/default/guidelines", text="Prefer short answers.")
    assert "Take the quiz" in (await lead.get("/projects/default/guidelines")).html
    quiz = await lead.get("/projects/default/quiz")
    shown = [one.text.strip() for one in quiz.document.all("div", class_="rendered")]
    assert "short" not in quiz.html, "nothing is explained before"
    ranks = {}
    for question, texts in enumerate((shown[1:4], shown[5:8]), start=1):
        for place, text in enumerate(texts, start=1):
            # The first answer of the import is accepted; the order of the others is open.
            ranks[f"place-{question}-{place}"] = "1" if text.endswith(" 0") else str(place + 1)
    wrong = dict.fromkeys(ranks, "1")
    checked = await lead.post("/projects/default/quiz", *(ranks | dict(list(wrong.items())[:3])).items())
    assert "1 of 2 right" in checked.html
    assert checked.html.count("It is &lt;b&gt;short&lt;/b&gt;.") == 2
    assert "2 of 2 right" in (await lead.post("/projects/default/quiz", *ranks.items())).html
    assert "0 of 2 right" in (await lead.post("/projects/default/quiz")).html
    reader = store.people.by_handle("lead").id
    assert store.projects.readings(project, reader)[-1].quiz == 1.0
    page = await lead.post("/projects/default/next")
    texts = [one.text for one in page.document.all("pre", class_="raw")][1:]
    order = [1 if text.endswith(" 0") else 2 for text in texts]
    await lead.post(page.path, *places(page, *order), **page.hidden())
    assert "<td>1 of 1</td>" in (await lead.get("/projects/default/labelers")).html

    collected = [{"prompt": text, "state": "new"} for text in ("call 030 123456", "fine", "no")]
    ids = [one["id"] for one in (await service.local.post("/prompts", {"prompts": collected}))["prompts"]]
    assert "call <mark>030 123456</mark>" in (await lead.get("/prompts")).html
    fields = {"decision": "mask", "turn_1": "call [PHONE]"}
    await lead.post(f"/prompts/{ids[0]}", **fields)
    await lead.post(f"/prompts/{ids[1]}", decision="accept")
    done = await lead.post(f"/prompts/{ids[2]}", decision="reject")
    assert "Nothing waits" in done.html
    assert (await lead.post(f"/prompts/{ids[2]}", decision="keep")).status == 400
    turns = {one.turns[0].content if one.turns else one.id: one.state for one in store.prompts.page()}
    assert turns["call [PHONE]"] == turns["fine"] == "screened"
    assert turns[ids[2]] == "rejected"
    assert not {"call 030 123456", "no"} & set(turns)
    for one in lead.pages:
        check_page(one)


def upload(address: str, body: str, headers: dict[str, str]) -> tuple[int, str | None]:
    import http.client

    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/projects/default/tasks", body, headers)
    response = connection.getresponse()
    response.read()
    found = response.status, response.getheader("location")
    connection.close()
    return found


PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "[a]: javascript:alert(1)\n[a]",
    "```<b>\ncode\n```",
    "<!-- hidden -->",
    "&lt;script&gt;",
    "# <svg onload=alert(1)>",
    "| a <b> | b |\n|:--|--:|\n| <i> | 2 |",
    "| a |\n|-|\n| b | beyond the columns |",
    "\u202etxt.exe\u202c",
    "\0<b>\ud800",
    "> " * 300 + "deep",
    "[" * 3_000,
    "x" * 300_000,
)
SHOWN = {
    *("p", "pre", "code", "span", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "ol", "li"),
    *("blockquote", "hr", "br", "em", "strong", "s"),
}


@settings(deadline=None)
@given(st.text(max_size=300))
@example("")
def test_markdown_of_strangers_is_inert_and_hides_nothing(text: str) -> None:
    for written in (text, *(PAYLOADS if not text else ())):
        document = Document("<div>" + str(rendered(written)) + "</div>")
        for one in document.elements:
            assert one.tag in SHOWN, (written, one)
            assert set(one.attributes) <= {"class", "role", "aria-label", "tabindex", "start"}, one
        kept = document.elements[0].text
        letters = [character for character in written if character.isalpha()]
        assert [character for character in kept if character.isalpha()] == letters, written[:200]


def test_differences_give_both_texts_back() -> None:
    first, second = "the cat sat, quietly", "the black cat sat"
    parts = differences(first, second) or []
    assert "".join(text for kind, text in parts if kind != "added") == first
    assert "".join(text for kind, text in parts if kind != "removed") == second
    assert ("added", " black") in parts
    assert differences("a " * 5_000, "b") is None


@pytest.mark.parametrize(
    ("given_path", "path"),
    [
        ("/a?b", "/a?b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("", "/"),
    ],
)
def test_sign_in_leads_back_only_to_this_server(given_path: str, path: str) -> None:
    assert local_path(given_path) == path


async def test_page_to_sign_in_says_nothing_of_api_keys(tmp_path: Path) -> None:
    async with feedback(tmp_path, origin="https://people.example.com") as http:
        page = await Visitor(http.address).get("/")
        assert (page.status, page.document.all("h1")[0].text) == (401, "Sign in")
        assert "API key" not in page.html
        program = await http.local.ask("GET", "/tasks")
        assert (program.status, "send an API key" in program.json["error"]["message"]) == (401, True)


async def test_invitation_is_used_by_the_form_and_not_by_opening_the_link(tmp_path: Path) -> None:
    async with feedback(tmp_path, root_path="/people") as http:
        person = await http.local.post("/people", {"handle": "ben"})
        link = (await http.local.post(f"/people/{person['id']}/invitation"))["link"]
        assert link.startswith("/people/invitation?token=")
        ben = Visitor(http.address)
        for _ in range(2):
            page = await ben.get(link)
            assert page.status == 200
        assert (
            page.document.all("link", rel="stylesheet")[0]
            .attributes["href"]
            .startswith("/people/static/page.css?v=")
        )
        done = await ben.post("/people/invitation", follow=False, **page.hidden())
        assert (done.status, done.headers["location"]) == (303, "/people/")
        again = await ben.post("/people/invitation", **page.hidden())
        assert (again.status, "used or expired" in again.html) == (401, True)
        style = await ben.get("/people/static/page.css")
        assert (style.status, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
        assert (await ben.get("/static/..%2fpage.py")).status in (401, 404)


async def test_forms_of_other_pages_are_refused(service: Feedback) -> None:
    anna = Visitor(service.address)
    await anna.sign_in("anna")
    for headers in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
        caller = service.local
        caller.headers["cookie"] = anna.cookie
        answer = await caller.ask("POST", "/sign-out", b"", **headers)
        assert answer.status == 403
    assert (await anna.get("/")).status == 200
