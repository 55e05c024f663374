"""Hostile texts and values in every field of every route: nothing fails inside, and texts stay texts."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from fairlead.types import Message
from services.feedback.pages.sign_in import local_path
from services.feedback.routes import ROUTES, is_page
from services.feedback.store import Store
from services.feedback.store.records import NewAnswer, NewPerson, NewPrompt, NewTask
from tests.feedback_pages import Page, Visitor, check_page
from tests.feedback_scene import populate
from tests.feedback_service import API, Caller, Feedback, feedback
from tests.feedback_world import schema_of
from tests.gateway_world import HttpResponse
from tests.hostile_texts import hostile_texts

ANSWERS = 15
"""Answers of a task with hostile texts."""
HOSTILE = (
    *("a\0b", "\ud800", "", "x" * 70_000, "../x\r\nx: y<script>", "9" * 30),
    *(9**30, -(2**63) - 1, -1, 1.5, 1e308, True, None, [], {}, ["\0"], [{"\0": "\0"}]),
)
"""Values of a field."""
PARTS = (
    "%00",
    "a%00b",
    "%ED%A0%80",
    "%E2%80%AE",
    "x" * 3_000,
    "-1",
    "9" * 30,
    "..%2f..",
    "%0d%0ax:y",
    "'",
    "%25",
)
"""Values of a part of a path or a parameter of a query, encoded."""
QUERIES = (
    "after",
    "state",
    "project",
    "version",
    "since",
    "first",
    "second",
    "limit",
    "review",
    "verify",
    "kind",
)
NUMBERS = ("after", "version", "since", "first", "second", "limit", "count", "seed")
FIELDS = (
    *(
        "place-1",
        "quality-1",
        "flag-1",
        "verdict",
        "strength",
        "note",
        "text",
        "own",
        "base",
        "action",
        "reason",
    ),
    *(
        "handle",
        "role",
        "cohort",
        "state",
        "priority",
        "overlap",
        "kind",
        "lines",
        "what",
        "request",
        "opened",
    ),
    *("seconds", "decision", "turn-1", "invitation", "back", "hourly_cost", "place-1-1", "late"),
)
"""Fields of the forms."""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    server, _ = request.getfixturevalue("postgres")
    return schema_of(server, f"s{secrets.token_hex(6)}")


@pytest.fixture
async def scene(place: str, tmp_path: Path) -> AsyncIterator[Feedback]:
    async with feedback(tmp_path, store=place) as http:
        populate(http.service.store, tasks=6)
        yield http


def names(http: Feedback, person: str) -> dict[str, str]:
    """Return values of the parts of a path that there are."""
    store = http.service.store
    project = store.projects.get("default").id
    judged = next(entry for entry in store.log.entries() if entry.kind == "judgment")
    offer = store.leases.take(person, project, kinds=["rank"])
    assert offer is not None
    return {
        "project": "default",
        "assignment": offer.assignment.id,
        "judgment": judged.id,
        "task": judged.task or "",
        "person": store.people.by_handle("emil").id,
        "prompt": store.prompts.page(state="new")[0].id,
        "name": store.snapshots.all()[0].digest,
        "digest": store.snapshots.all()[0].digest,
        "number": "1",
        "artifact": "x",
        "kind": "person",
        "version": "1",
        "path": "swagger-ui.css",
        "erasure": "x",
    }


def filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def bodies(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[object]:
    """Yield bodies of a schema in which one field has a hostile value, and bodies that are no objects."""
    yield from (None, [], "x", 1, {"\0": 1})
    known = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    whole = example(known, schemas)
    yield whole
    for name in known.get("properties", {"": {}}):
        for value in HOSTILE:
            yield {**(whole if isinstance(whole, dict) else {}), name: value}
            if isinstance(whole, dict) and isinstance(found := whole.get(name), list) and found:
                yield {**whole, name: [value]}
                yield from (
                    {**whole, name: [{**found[0], inner: value}]}
                    for inner in (found[0] if isinstance(found[0], dict) else ())
                )


def example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """Return a value that a schema allows, with every field."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            return example(one, schemas)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "object":
        return {name: example(one, schemas) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [example(schema.get("items", {}), schemas)]
    return {"string": "x", "integer": 1, "number": 1.0, "boolean": True}.get(schema.get("type", ""), {})


@dataclass
class Attack:
    """Sends requests, and notes responses that must not be."""

    caller: Caller
    wrong: dict[tuple[object, ...], str] = field(default_factory=dict)
    sent: int = 0

    async def send(self, method: str, path: str, form: str | None = None) -> None:
        self.check(await raw(self.caller, method, path, form), method, path, form)

    async def post(self, method: str, path: str, body: object, **headers: str) -> None:
        try:
            answer = await self.caller.ask_at(method, path, body, **headers)
        except ConnectionResetError:
            # A request that is no HTTP: the server may close the connection before it has read the body.
            self.sent += 1
            return
        self.check(answer, method, path, body, *headers.items())

    def check(self, answer: HttpResponse, *request: object) -> None:
        """Note a response that is an internal error, or has a header that a text made."""
        self.sent += 1
        if answer.status >= 500 or {"x", "set-cookie-x"} & set(answer.headers):
            self.wrong[tuple(str(one)[:200] for one in request)] = f"{answer.status} {answer.body[:300]!r}"
        if answer.headers.get("content-type", "").startswith("text/html") and b"swagger" not in answer.body:
            check_page(Page(str(request[1]), answer.status, answer.headers, answer.body))


async def raw(caller: Caller, method: str, path: str, body: str | None = None) -> HttpResponse:
    """Send a path as it is, with a form."""

    def send() -> HttpResponse:
        connection = http.client.HTTPConnection(caller.address, timeout=60)
        headers = caller.headers | {"sec-fetch-site": "same-origin"}
        if body is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"
        connection.putrequest(method, path, skip_accept_encoding=True)
        data = (body or "").encode()
        for name, value in (headers | {"content-length": str(len(data))}).items():
            connection.putheader(name, value)
        connection.endheaders(data)
        response = connection.getresponse()
        found = HttpResponse(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
        connection.close()
        return found

    return await asyncio.to_thread(send)


async def attack_route(attack: Attack, method: str, template: str, known: Mapping[str, str]) -> None:
    """Send hostile values in every place of a request that is not its body."""
    form = None if method == "GET" else ""
    for part in re.findall(r"\{(\w+)\}", template):
        for hostile in PARTS:
            await attack.send(method, filled(template, known | {part: hostile}), form)
    path = filled(template, known)
    if method == "GET":
        for query in ("&".join(f"{name}={part}" for name in QUERIES) for part in PARTS):
            await attack.send(method, f"{path}?{query}")
        for name in QUERIES:
            await attack.send(method, f"{path}?{name}={'9' * 30 if name in NUMBERS else '%00'}")
    elif is_page(path):
        usual = {"verdict": "1", "own": "yes", "text": "x", "reason": "unclear", "decision": "accept"}
        one = [{**usual, name: value} for name in FIELDS for value in ("a\0b\ud800", "9" * 9)]
        for fields in (*one, *(dict.fromkeys(FIELDS, str(value)) for value in HOSTILE)):
            await attack.send(method, path, urlencode(fields, errors="surrogatepass"))


async def attack_headers(attack: Attack) -> None:
    named = ("idempotency-key", "x-request-id", "cookie", "authorization", "origin", "host", "content-type")
    for name in named:
        for value in ("\t", "x" * 5_000, "\xff", "<script>", "fairlead_feedback=\xff"):
            headers = {name.replace("-", "_"): value}
            await attack.post("POST", f"{API}/next", {}, **headers)
            await attack.post("GET", "/", None, **headers)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_hostile_values_of_every_route_are_refused_or_kept(
    scene: Feedback, caplog: pytest.LogCaptureFixture
) -> None:
    store = scene.service.store
    lead = store.people.by_handle("lena").id
    cookie = f"{scene.service.cookie.name}={store.people.start_session(lead)}"
    known = names(scene, lead)
    described = (await scene.local.ask("GET", "/openapi.json")).json
    schemas = described["components"]["schemas"]
    person, program = Attack(Caller(scene.address, {"cookie": cookie})), Attack(scene.local)
    caplog.set_level(logging.CRITICAL)
    for (method, template), need in ROUTES.items():
        if template in ("/sign-out", f"{API}/sessions/current", f"{API}/people/{{person}}/sessions"):
            continue
        attack = person if need is not None and need.person else program
        await attack_route(attack, method, template, known)
        if method != "GET" and not is_page(template):
            content = described["paths"][template][method.lower()].get("requestBody", {}).get("content", {})
            for body in bodies(content.get("application/json", {}).get("schema", {}), schemas):
                await attack.post(method, filled(template, known), body)
    await attack_headers(person)
    assert person.wrong | program.wrong == {}
    assert person.sent + program.sent > 3_000
    store.log.verify()


@pytest.mark.parametrize(
    "path", ["/\t/evil.example", "/\r/evil.example", "/\u20ac", "/\ud800", "/\0", "/ /evil.example", "/x\x7f"]
)
def test_sign_in_does_not_lead_to_what_a_browser_reads_otherwise(path: str) -> None:
    assert local_path(path) == "/"


async def test_back_of_a_sign_in_is_no_header_of_its_own(tmp_path: Path) -> None:
    async with feedback(tmp_path) as service:
        for back in ("/\t/evil.example", "/\r\nx: y", "/\u20ac\0\ud800"):
            body = urlencode({"handle": "anna", "back": back}, errors="surrogatepass")
            answer = await raw(service.local, "POST", "/sign-in", body)
            assert answer.status in (303, 400), answer.body
            assert answer.headers.get("location", "/") == "/"
        visitor = Visitor(service.address)
        found = await visitor.get(f"/projects/{quote('ü')}/mine?x=%0d%0ay:z")
        assert found.status == 401
        assert json.dumps(found.headers).find("y:z") < 0


def as_shown(text: str) -> str:
    """Return a text without the characters that HTML in UTF-8 cannot hold."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def add_hostile_texts(store: Store, texts: Sequence[str]) -> None:
    """Put the texts wherever a text may be: prompts, answers, guidelines, explanations, collected prompts."""
    project = store.projects.get("default").id
    parts = [texts[start : start + ANSWERS] for start in range(0, len(texts), ANSWERS)]
    new = [NewTask("rank", prompt_of(*part[:2]), tuple(map(NewAnswer, part)), overlap=2) for part in parts]
    written = texts[8:200:24]
    new += [NewTask(kind, prompt_of(text), overlap=1) for kind in ("write", "prompt") for text in written]
    new += [NewTask("edit", prompt_of(text), (NewAnswer(text),), overlap=1) for text in written]
    for text in texts[5:100:20]:
        gold = {"ranks": [1, 2], "explanation": text}
        new.append(NewTask("rank", prompt_of(text), (NewAnswer(text), NewAnswer("x")), why="gold", gold=gold))
    store.tasks.add(project, new)
    for part in parts[1:4]:
        store.projects.add_guideline(project, "\n\n".join(part))
    store.prompts.add([NewPrompt((Message("user", text),), state="new") for text in texts[5:60]])


def prompt_of(*texts: str) -> NewPrompt:
    turns = [
        Message(role, text)
        for role, text in zip(("system", "user", "assistant", "user"), (*texts, "?"), strict=False)
    ]
    return NewPrompt((*turns, Message("user", "last")))


async def label(visitor: Visitor, notes: Iterator[str], given: set[str], *, tasks: int) -> set[str]:
    """Do tasks by their pages, with hostile notes, texts and reasons; return the texts that were shown."""
    shown: set[str] = set()
    page = await visitor.post("/projects/default/next")
    for number in range(tasks):
        if "/assignments/" not in page.path:
            break
        place, document = page.path.partition("?")[0], page.document
        answers = len(document.all("article"))
        shown |= {one.text for one in document.all("pre", class_="raw")}
        note = next(notes)
        given.add(note)
        sent = {"note": note, "text": note or "x", "own": "yes", "base": "1", "verdict": "2"}
        if number % 4 == 0:
            await visitor.post(place, follow=number % 8 == 0, action="save", **sent)
        if answers > 1 and number % 4 == 1:
            await visitor.get(f"{place}/comparison?first=1&second=2")
        if answers == 0 and len(shown) % 3 == 0:
            page = await visitor.post(f"{place}/skip", reason="other", note=note, request=note)
        else:
            ranks = [(f"place-{number}", str(number)) for number in range(1, answers + 1)]
            page = await visitor.post(place, *ranks, **sent | page.hidden())
        if page.status == 400:
            page = await visitor.post(f"{place}/skip", reason="broken")
    return shown


async def lead_all(http: Feedback, texts: Sequence[str], notes: Iterator[str]) -> Visitor:
    """Look at every page of a lead, decide about tasks with hostile notes, and send hostile names."""
    store = http.service.store
    lead = Visitor(http.address)
    await lead.sign_in("lead")
    for name in ("overview", "agreement", "labelers", "bias", "disagreements", "tasks", "exports"):
        assert (await lead.get(f"/projects/default/{name}")).status == 200, name
    for task in store.tasks.page(store.projects.get("default").id)[::4]:
        fields = [(f"place-{number}", "1") for number in range(1, ANSWERS + 1)]
        await lead.post(f"/tasks/{task.id}", *fields, note=next(notes))
    for path in ("/prompts", "/people", "/audit?verify=yes", "/"):
        assert (await lead.get(path)).status == 200, path
    for text in texts[5::20]:
        handle = urlencode({"handle": text, "back": text}, errors="surrogatepass")
        for path in ("/sign-in", "/people", "/invitation"):
            answer = await raw(Caller(http.address, {"cookie": lead.cookie}), "POST", path, handle)
            assert answer.status in (303, 400, 401, 413), (path, answer.status)
            assert answer.headers.get("location", "/") in ("/", "/people"), text
            lead.pages.append(Page(path, answer.status, answer.headers, answer.body))
    return lead


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_500_hostile_texts_are_texts_on_every_page(tmp_path: Path) -> None:
    texts = hostile_texts()
    settings: dict[str, object] = {"project__max_answers": 16, "project__gold_share": 0.1}
    kinds = ["rank", "write", "edit", "prompt"]
    async with feedback(tmp_path, project__kinds=kinds, project__shared_share=1, **settings) as http:
        store = http.service.store
        add_hostile_texts(store, texts)
        notes = cycle(as_shown(text)[:9_000] for text in texts)
        visitors, given = [], set[str]()
        for handle, tasks in (("ben", 12), ("anna", 1_000)):
            person = store.people.add(NewPerson("labeler", handle, active=True)).id
            cookie = f"{http.service.cookie.name}={store.people.start_session(person)}"
            visitors.append(Visitor(http.address, cookie))
            shown = await label(visitors[-1], notes, given, tasks=tasks)
            for path in ("mine", "guidelines?version=3&since=1", "quiz"):
                await visitors[-1].get(f"/projects/default/{path}")
            for entry in store.log.of_person(person)[:10]:
                await visitors[-1].get(f"/judgments/{entry.id}")
        assert {as_shown(text) for text in texts} <= shown, "every text is shown as it was written"
        lead = await lead_all(http, texts, notes)
        pages = [page for visitor in (*visitors, lead) for page in visitor.pages]
        for page in pages:
            assert page.status < 500, page.path
            if "comparison.json" not in page.path:
                check_page(page)
        assert len(pages) > 150
        await check_exports(http, given)


async def check_exports(http: Feedback, notes: set[str]) -> None:
    """Check that files are what they say, and that nothing in them can be opened as a page or a table."""
    made = await http.local.post("/snapshots", {"kinds": ["rank"]})
    for name in ("rankings", "pairs", "argilla", "label-studio"):
        answer = await http.local.ask("GET", f"/snapshots/{made['digest']}.{name}")
        assert answer.headers["content-disposition"].startswith("attachment; ")
        assert answer.headers["content-type"].split(";")[0] in ("application/x-ndjson", "application/json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        lines = answer.body.splitlines() if name != "label-studio" else [answer.body]
        assert all(isinstance(json.loads(line), dict | list) for line in lines)
        answer.body.decode("utf-8")
    entries = http.service.store.log.entries(limit=1_000)
    kept = {str((entry.body or {}).get("note", "")) for entry in entries}
    assert len(kept & {note.replace("\r\n", "\n") for note in notes}) > 30, "notes are kept as written"


async def test_texts_beyond_the_limits_are_refused_and_cut_in_messages(tmp_path: Path) -> None:
    long = "<script>" + "x" * 1_000_000
    async with feedback(tmp_path) as http:
        for body in (
            {"prompt": long, "responses": ["a", "b"]},
            {"prompt": "p", "responses": ["a", long]},
            {"prompt": [{"role": "user", "content": long}], "responses": ["a", "b"]},
            {"prompt": "p", "responses": ["a", "b"], "source": long},
        ):
            answer = await http.local.ask("POST", "/tasks", {"tasks": [body]})
            assert answer.status == 400, answer.body[:200]
            assert len(answer.body) < 2_000
        visitor = Visitor(http.address)
        await visitor.sign_in("anna")
        for path in ("/sign-in", "/people"):
            page = await visitor.post(path, handle=long[:200_000])
            assert page.status == 400
            assert len(page.body) < 20_000
            check_page(page)
