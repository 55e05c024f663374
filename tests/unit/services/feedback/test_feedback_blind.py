"""Nothing sent to a labeler depends on models or on what others said; the order of answers is uniform."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from scipy.stats import chisquare

from fairlead.types import Message
from services.feedback.routes import ROUTES
from services.feedback.store import Store
from services.feedback.store.canonical import sha256, shown_order
from services.feedback.store.judged import Filter, Ranking
from services.feedback.store.records import NewAnswer, NewPerson, NewPrompt, NewTask, Offer
from tests.feedback_pages import Visitor
from tests.feedback_service import API, Caller, Feedback, feedback, ranks_by_text

KINDS = ("rank", "pair", "write", "edit", "prompt")
SECRETS = (
    "model-x",
    "9f9f9f9f",
    "run-x",
    "version-x",
    "request-x",
    "temperature-x",
    "note-x",
    "ben-x",
    "judge-x",
)
"""Parts of the provenance of answers, of the names of others, and of what they said."""


def tasks() -> list[NewTask]:
    """Return tasks of every kind; others judge the first, fourth and fifth of them."""
    found = []
    for number, (kind, k) in enumerate((("rank", 4), ("pair", 2), ("edit", 3), ("rank", 3), ("rank", 4))):
        texts = [f"answer {number} {place}" for place in range(k)]
        answers = tuple(NewAnswer(text, run="run-x", weight_version="version-x.7") for text in texts)
        found.append(NewTask(kind, NewPrompt((Message("user", f"question {number}"),)), answers, overlap=3))
    found.append(NewTask("write", NewPrompt((Message("user", "write"),)), overlap=3))
    gold = {"ranks": [1, 2], "explanation": "shorter"}
    answers = (NewAnswer("gold 0", run="run-x"), NewAnswer("gold 1", run="run-x"))
    return [*found, NewTask("rank", NewPrompt((Message("user", "gold"),)), answers, why="gold", gold=gold)]


def prepare(store: Store) -> str:
    """Add people and tasks, and return the session of the labeler who is watched."""
    project = store.projects.get("default").id
    store.projects.add_guideline(project, "# Be kind")
    store.tasks.add(project, tasks())
    for handle, kind in (("ben-x", "labeler"), ("cara", "labeler"), ("judge-x", "judge")):
        store.people.add(NewPerson(kind, handle, active=True))
    return store.people.start_session(store.people.add(NewPerson("labeler", "zoe", active=True)).id)


def rewrite(file: Path) -> None:
    """Give the answers of a store another provenance."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "UPDATE answer SET run = 'run-x-other', weight_version = 'version-x.' || length(text) || id,"
            " model_digest = '9f9f9f9f' || id, sampling = '{\"temperature-x\": 2}', request_id = 'request-x'"
        )
        database.execute("UPDATE task SET round = 7, why = 'fresh' WHERE why = 'random'")


def others(store: Store, *, backwards: bool) -> None:
    """Let two people and a judge say something about the tasks to rank."""
    project = store.projects.get("default").id

    def say(offer: Offer) -> Ranking:
        order = sorted(offer.answers, key=lambda answer: answer[1], reverse=backwards)
        ranks = {answer: place for place, (answer, _) in enumerate(order, start=1)}
        flags = {order[-1][0]: ("hallucination",)} if backwards else {}
        return Ranking(
            ranks, ratings={order[0][0]: 2 + 5 * backwards}, flags=flags, note=f"note-x {backwards}"
        )

    for handle in ("ben-x", "cara", "judge-x"):
        person = store.people.by_handle(handle).id
        for _ in range(2):
            offer = store.leases.take(person, project, kinds=["rank"])
            assert offer is not None
            store.judgments.hand_in(offer.assignment.id, person, say(offer))
    store.artifacts.add("reward_model", "model-x", [store.snapshots.make(Filter(project)).digest])


class Watched:
    """A labeler who keeps all that the service sends."""

    def __init__(self, http: Feedback, session: str) -> None:
        self.cookie = f"{http.service.cookie.name}={session}"
        self.visitor = Visitor(http.address, self.cookie)
        self.caller = Caller(http.address, {"cookie": self.cookie})
        self.received: list[tuple[str, bytes]] = []

    async def ask(self, method: str, path: str, body: object = None) -> object:
        answer = await self.caller.ask_at(method, path, body)
        head = "".join(f"{name}: {value}\n" for name, value in sorted(answer.headers.items()))
        self.received.append((f"{method} {path}", f"{answer.status}\n{head}".encode() + answer.body))
        return answer.json if answer.body.startswith(b"{") and answer.status < 300 else None

    def keep_pages(self) -> None:
        for page in self.visitor.pages:
            head = "".join(f"{name}: {value}\n" for name, value in sorted(page.headers.items()))
            self.received.append((f"page {page.path}", f"{page.status}\n{head}".encode() + page.body))
        self.visitor.pages.clear()


async def work(watched: Watched) -> None:
    """Work on every task, by pages and by the API, with mistakes, drafts, changes and skips."""
    visit = watched.visitor
    for path in ("/", "/about", "/projects/default/guidelines", "/projects/default/quiz", "/nothing"):
        await visit.get(path)
    page = await visit.post("/projects/default/next")
    while "/assignments/" in page.path:
        place = page.path.partition("?")[0]
        answers = len(page.document.all("article"))
        await visit.post(place, ("place-1", "99"), verdict="9", **page.hidden())
        await visit.post(place, note="mine", action="save")
        await visit.get(f"{place}/comparison.json?first=1&second=2")
        ranks = [(f"place-{number}", str(number)) for number in range(1, answers + 1)]
        fields = {"verdict": "1", "text": "mine", "own": "yes", "base": "1"}
        page = await visit.post(place, *ranks, **fields | page.hidden())
        watched.keep_pages()
        await watched.ask("GET", API + place)
        await watched.ask("POST", f"{API}{place}/judgment", {"ranks": {"x": 1}})
    mine = await visit.get("/projects/default/mine")
    for one in mine.document.all("a", class_="button"):
        judged = await visit.get(one.attributes["href"])
        await visit.post(judged.path, **judged.hidden())
    watched.keep_pages()


async def refused(watched: Watched, names: dict[str, Iterable[str]]) -> None:
    """Send every method to every path of the table, with the ids of what belongs to others."""
    for method, path in ROUTES:
        wanted = re.findall(r"\{(\w+)\}", path)
        for given in names.get(wanted[0], ["x"]) if wanted else [""]:
            place = re.sub(r"\{\w+\}", given, path, count=1)
            place = re.sub(r"\{\w+\}", "x", place)
            if path not in ("/sign-out", f"{API}/sessions/current", "/docs/files/{path}"):
                await watched.ask(method, place, {} if method in ("POST", "PUT", "PATCH") else None)
    for method, path in (
        ("DELETE", f"{API}/tasks"),
        ("OPTIONS", "/"),
        ("GET", f"{API}/x"),
        ("PUT", "/people"),
    ):
        await watched.ask(method, path)


def names_of_others(store: Store) -> dict[str, Iterable[str]]:
    """Return the values of the parts of a path, in an order that does not depend on what was said."""
    project = store.projects.get("default").id
    entries = sorted(store.log.entries(), key=lambda entry: entry.seq)
    people = [store.people.by_handle(handle).id for handle in ("ben-x", "judge-x")]
    assignments = [
        store.leases.page(person, project)[0].id for person in people if store.leases.page(person, project)
    ]
    return {
        "assignment": assignments[:1],
        "judgment": [entries[0].id],
        "task": [one.id for one in store.tasks.page(project)][:2],
        "person": people,
        "prompt": [one.id for one in store.prompts.page()][:1],
        "artifact": ["model-x"],
        "name": [store.snapshots.all()[0].digest, f"{store.snapshots.all()[0].digest}.rankings"],
        "project": ["default"],
    }


CHANCE = (
    (r"[0-9a-f]{16,64}|(?<=name=\"request\" value=\")[\w-]{22}", "id"),
    (r"\d{10}(\.\d+)?|(?<=\"seconds\":)[\d.]+|\d+m?s\b", "time"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d|\w{3}, \d\d \w{3} \d{4} [\d:]{8}", "date"),
    (r"content-length: \d+", ""),
)
"""What differs from one session to another, and what takes its place."""


def without_chance(received: Sequence[tuple[str, bytes]]) -> list[str]:
    """Return what was received without random ids, which are numbered as they come, and without times."""
    known: dict[str, str] = {}

    def numbered(name: str) -> Callable[[re.Match[str]], str]:
        return lambda match: known.setdefault(match[0], f"id{len(known)}") if name == "id" else name

    found = []
    for name, body in received:
        text = f"{name}\n{body.decode()}"
        for pattern, what in CHANCE:
            text = re.sub(pattern, numbered(what), text)
        found.append(text)
    return found


async def session(folder: Path, token: str, *, backwards: bool) -> list[tuple[str, bytes]]:
    """Return all that the labeler receives in a session after others have worked."""
    async with feedback(folder, project__kinds=list(KINDS), project__gold_share=0.2) as http:
        others(http.service.store, backwards=backwards)
        watched = Watched(http, token)
        await work(watched)
        await refused(watched, names_of_others(http.service.store))
        return watched.received


@pytest.mark.slow
async def test_nothing_sent_to_a_labeler_depends_on_models_or_on_others(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    async with feedback(first, project__kinds=list(KINDS), project__gold_share=0.2) as http:
        token = prepare(http.service.store)
    shutil.copytree(first, second)
    rewrite(second / "feedback.db")
    one = await session(first, token, backwards=False)
    other = await session(second, token, backwards=True)
    done = [name for name, body in one if name.endswith("/judgment") or b"Handed in" in body]
    assert len(one) > 150
    assert len(done) >= 8
    for received in (one, other):
        for name, body in received:
            # The paths that the labeler asked for are not what the service knows.
            shown = body.replace(name.partition(" ")[2].encode(), b"")
            assert not [secret for secret in SECRETS if secret.encode() in shown], (name, body)
    for mine, theirs in zip(without_chance(one), without_chance(other), strict=True):
        assert mine == theirs


ANSWERS = 4


def uniform(orders: Sequence[Sequence[int]]) -> list[float]:
    """Return p-values of χ²: the place of each answer, all orders, and places from one task to the next."""
    places = [Counter(order.index(answer) for order in orders) for answer in range(ANSWERS)]
    found = [float(chisquare([counts[place] for place in range(ANSWERS)]).pvalue) for counts in places]
    whole = Counter(tuple(order) for order in orders)
    assert len(whole) == 24
    found.append(float(chisquare(list(whole.values())).pvalue))
    moves = Counter((before.index(0), after.index(0)) for before, after in pairwise(orders))
    found.append(
        float(chisquare([moves[one, two] for one in range(ANSWERS) for two in range(ANSWERS)]).pvalue)
    )
    return found


def test_order_is_uniform_over_tasks_and_over_people() -> None:
    answers = [sha256(f"answer {place}") for place in range(ANSWERS)]

    def orders(pairs: Iterable[tuple[str, str]]) -> list[list[int]]:
        return [
            [answers.index(one) for one in shown_order("secret", task, person, answers)]
            for task, person in pairs
        ]

    of_one = orders((f"task {number}", "anna") for number in range(2_400))
    of_another = orders((f"task {number}", "ben") for number in range(2_400))
    of_one_task = orders(("task", f"person {number}") for number in range(2_400))
    for found in (of_one, of_another, of_one_task):
        assert min(uniform(found)) > 0.001
    # Two people see the same order as often as chance has it: 1 in 24.
    same = sum(one == other for one, other in zip(of_one, of_another, strict=True))
    assert chisquare([same, 2_400 - same], [100, 2_300]).pvalue > 0.001
    assert of_one == orders((f"task {number}", "anna") for number in range(2_400))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_order_of_2400_tasks_shown_over_http_is_uniform_and_stable(tmp_path: Path) -> None:
    labelers, count = 8, 300
    async with feedback(tmp_path, project__overlap=labelers, project__shared_share=1) as http:
        new = [
            {"prompt": f"question {task}", "responses": [f"{task} {place}" for place in range(ANSWERS)]}
            for task in range(count)
        ]
        await http.local.post("/tasks", {"tasks": new})
        by_person = []
        for number in range(labelers):
            person = await http.signed_in(handle=f"labeler {number}")
            orders: dict[str, list[int]] = {}
            while shown := await person.next():
                if len(orders) < 20:
                    again = await person.get(f"/assignments/{shown['assignment']}")
                    assert again["answers"] == shown["answers"]
                texts = [answer["text"].split() for answer in shown["answers"]]
                orders[texts[0][0]] = [int(place) for _, place in texts]
                await person.post(
                    f"/assignments/{shown['assignment']}/judgment", {"ranks": ranks_by_text(shown)}
                )
            assert len(orders) == count
            by_person.append(orders)
        every = [order for orders in by_person for order in orders.values()]
        # The secret of the store is drawn at random: of six figures one is below 10⁻⁵ once in 16,000 runs.
        assert min(uniform(every)) > 1e-5
        for one, other in pairwise(by_person):
            same = sum(one[task] == other[task] for task in one)
            assert same < count / 6, "each person sees an order of their own"
        bias = await http.local.get("/figures/bias")
        assert bias["position"]["judgments"] == labelers * count
        assert bias["position"]["p_value"] > 1e-5
