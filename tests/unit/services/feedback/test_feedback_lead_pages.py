"""Pages of leads about what was made of judgments: forgetting, rounds, judges, and data sets."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fairlead.types import Message
from services.feedback.store.judged import Filter
from services.feedback.store.records import NewPrompt
from tests.feedback_pages import Page, Visitor, check_page
from tests.feedback_scene import populate
from tests.feedback_service import Caller, Feedback, feedback, task


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Feedback]:
    async with feedback(tmp_path) as found:
        populate(found.service.store, tasks=4)
        yield found


@pytest.fixture
def lead(service: Feedback) -> Visitor:
    people = service.service.store.people
    token = people.start_session(people.by_handle("lena").id)
    return Visitor(service.address, f"{service.service.cookie.name}={token}")


async def test_lead_finds_sees_and_erases_a_person_a_prompt_and_an_end_user(
    service: Feedback, lead: Visitor
) -> None:
    store = service.service.store
    subject = store.subject("user <17>")
    store.prompts.add([NewPrompt((Message("user", "100%_! sure?"),), subject=subject)])
    anna = store.people.by_handle("anna")
    found = await lead.get("/forget?find=aNNa")
    assert f"/forget/person/{anna.id}" in found.html
    assert "/forget/prompt/" not in found.html
    assert "Nothing." in (await lead.get("/forget?find=nobody%3Cb%3E")).html
    assert (await lead.get("/forget?find=100%25_!")).html.count("/forget/prompt/") == 1
    assert (await lead.get("/forget?find=%25_%25")).html.count("/forget/prompt/") == 0
    user = await lead.get("/forget?" + urlencode({"find": "user <17>"}))
    assert f"/forget/subject/{subject}" in user.html

    seen = await lead.get(f"/forget/person/{anna.id}")
    reach, lineage = store.lineage.forward("person", anna.id)
    assert f"<dd>{len(reach.entries)}</dd>" in seen.html
    assert all(one.artifact.id[:16] in seen.html for one in lineage)
    asked = await lead.post(f"/forget/person/{anna.id}")
    assert (asked.status, "Nothing was erased yet" in asked.html) == (400, True)
    assert store.people.get(anna.id).state == "active"
    done = await lead.post(f"/forget/person/{anna.id}", sure="yes")
    assert "Erased." in done.html
    (erasure,) = store.erasures.all()
    assert (erasure.actor, erasure.kind) == (store.people.by_handle("lena").id, "person")
    marked = {one.id for one in store.artifacts.all(tainted=True)}
    assert marked == {one.artifact.id for one in lineage}
    assert all(one[:16] in done.html for one in marked)
    assert "forgotten already" in (await lead.get(f"/forget/person/{anna.id}")).html
    assert (await lead.post(f"/forget/person/{anna.id}", sure="yes")).status == 404

    assert "1 entry" not in (await lead.post(f"/forget/subject/{subject}", sure="yes")).html
    assert store.prompts.count(subject) == 0
    prompt = store.prompts.page()[0].id
    text = store.prompts.get(prompt).turns[-1].content.split("?")[0]
    assert text in (await lead.get(f"/forget/prompt/{prompt}")).html
    assert (await lead.post(f"/forget/prompt/{prompt}", sure="yes")).status == 200
    assert (await lead.get(f"/forget/prompt/{prompt}")).status == 404
    own = store.people.by_handle("lena").id
    assert (await lead.post(f"/forget/person/{own}", sure="yes")).status == 400
    assert (await lead.get(f"/forget/answer/{own}")).status == 400
    store.log.verify()
    for page in lead.pages:
        check_page(page)


async def test_rounds_show_what_people_said_and_what_was_made(service: Feedback, lead: Visitor) -> None:
    store = service.service.store
    project = store.projects.get("default").id
    page = await lead.get("/projects/default/rounds")
    assert [one.text.split()[1] for one in page.document.all("h2")] == ["1", "0"]
    (counts,) = store.rounds.counts(project)
    by_judges = store.snapshots.judged(Filter(project, people=("judge",)))
    every = store.snapshots.judged(Filter(project))
    assert counts.train == len(every) > 0
    assert (counts.heldout, counts.judges) == (0, len(by_judges)) != (0, 0)
    snapshot = store.snapshots.all()[0].digest
    for shown in (
        "waits for judgments: 0 of 200",
        f"<dd>{counts.train}</dd>",
        "71.0%",
        "before 50.0%, passed",
    ):
        assert shown in page.html
    assert f"/projects/default/exports#snapshot-{snapshot[:16]}" in page.html
    assert f'id="snapshot-{snapshot[:16]}"' in (await lead.get("/projects/default/exports")).html
    assert "9" * 16 in page.html
    body = {"state": "stopped", "message": "people agree on <40%>"}
    answer = await service.local.ask("PUT", "/rounds/help/1", body)
    assert (answer.status, answer.json["wanted"], answer.json["step"]) == (200, 200, "judgments")
    assert (await service.local.ask("PUT", "/rounds/help/1", {"state": "lost"})).status == 400
    assert (await service.local.get("/rounds"))["rounds"][1]["message"] == "people agree on <40%>"
    store.erasures.forget("person", store.people.by_handle("ben").id, actor="test")
    page = await lead.get("/projects/default/rounds")
    assert "people agree on &lt;40%&gt;" in page.html
    assert page.html.count("train again") == 2
    assert "holds erased judgments" in page.html
    for one in lead.pages:
        check_page(one)


async def test_judges_and_data_sets(service: Feedback, lead: Visitor) -> None:
    store = service.service.store
    page = await lead.get("/projects/default/judges")
    (figures,) = (await service.local.get("/figures/judges"))["judges"]
    alike = figures["audit"]["with_people"]["alike"]
    assert f"{100 * alike:.1f}%" in page.html
    assert "Nothing is decided before there are 30." in page.html
    judge = store.people.by_handle("judge-7b").id
    await lead.post(f"/people/{judge}", state="paused")
    paused = store.people.get(judge).paused
    assert "paused since 20" in (await lead.get("/projects/default/judges")).html
    assert store.people.change(judge, {"state": "paused"}).paused == paused
    assert store.people.change(judge, {"state": "active"}).paused is None

    made = await lead.post(
        "/projects/default/exports",
        ("cohort", "train"),
        ("cohort", "heldout"),
        ("kind", "labeler"),
        what="all",
    )
    assert made.status == 200
    digest = store.snapshots.all()[-1].digest
    path = f"/projects/default/exports/{digest}"
    status, kind, content = await asyncio.to_thread(
        download,
        service.address,
        path,
        {"license": "cc-by-4.0", "title": "Help", "languages": "en, de"},
        lead.cookie,
    )
    assert (status, kind) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        readme = archive.read("README.md").decode()
        lines = [
            json.loads(line)
            for name in names
            if "rankings" in name and name.endswith(".jsonl")
            for line in archive.read(name).splitlines()
        ]
    assert 'license: "cc-by-4.0"' in readme
    assert len(lines) == store.snapshots.get(digest).entries
    assert (await lead.post(path, license="<b>")).status == 400
    assert (await lead.post(path)).status == 400
    for one in lead.pages:
        check_page(one)


async def test_labelers_who_miss_known_answers_are_held_until_they_pass_the_quiz(tmp_path: Path) -> None:
    settings = {"project__least_gold": 0.75, "project__gold_share": 1}
    async with feedback(tmp_path, project__kinds=["pair"], **settings) as http:
        store = http.service.store
        gold = {"ranks": [1, 2], "explanation": "The first one."}
        asked = [task(n, k=2, kind="pair", why="gold", gold=gold) for n in range(12)]
        await http.local.post("/tasks", {"tasks": [*asked, task(99, k=2, kind="pair")]})
        project = store.projects.get("default").id
        zoe, lead = Visitor(http.address), Visitor(http.address)
        await zoe.sign_in("zoe")
        await lead.sign_in("lead")
        assert "/assignments/" in (await zoe.post("/projects/default/next")).path, (
            "no quiz without guidelines"
        )
        store.projects.add_guideline(project, "The first one is better.")

        async def quiz(*, right: bool) -> Page:
            page = await zoe.get("/projects/default/quiz")
            shown = [one.text for one in page.document.all("pre", class_="raw")]
            fields = {}
            for question in range(1, 6):
                texts = shown[3 * question - 2 : 3 * question]
                for place, text in enumerate(texts, start=1):
                    fields[f"place-{question}-{place}"] = "1" if text.endswith(" 0") == right else "2"
            return await zoe.post("/projects/default/quiz", *fields.items())

        kept = await zoe.post("/projects/default/next")
        assert kept.path.startswith("/projects/default/quiz")
        assert "Before you start, the quiz asks for 75% right answers." in kept.html
        assert "quiz asks for" in (await zoe.get("/")).html
        assert "0 of 5 right" in (await quiz(right=False)).html
        assert "get no tasks" in (await zoe.get("/projects/default/quiz")).html
        assert "5 of 5 right" in (await quiz(right=True)).html

        page = await zoe.post("/projects/default/next")
        for _ in range(8):
            texts = [one.text for one in page.document.all("pre", class_="raw")][1:]
            wrong = "2" if texts[0].endswith(" 0") else "1"
            page = await zoe.post(page.path, verdict=wrong, **page.hidden())
        assert page.path == "/projects/default/quiz"
        assert "You ranked 0 of the last 8 questions with known answers" in page.html
        robot = Caller(http.address, {"cookie": zoe.cookie})
        refused = await robot.ask("POST", "/next", {})
        assert (refused.status, "Take the quiz" in refused.error["message"]) == (403, True)
        assert ">held</span>" in (await lead.get("/projects/default/labelers")).html
        assert "You are ready to start" in (await quiz(right=True)).html
        assert store.holds.of_project(project) == {}
        assert "/assignments/" in (await zoe.post("/projects/default/next")).path

        person = store.people.by_handle("zoe").id
        store.holds.start(project, person, accepted=1, asked=8)
        store.holds.start(project, person, accepted=2, asked=9)
        assert store.holds.of_project(project)[person].asked == 8
        await lead.post(f"/projects/default/labelers/{person}/release")
        assert store.holds.of_person(project, person) is None
        assert store.holds.answers(project, person, last=9) == [], "answers before do not count any more"
        for one in (*zoe.pages, *lead.pages):
            check_page(one)


def download(address: str, path: str, fields: dict[str, str], cookie: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"cookie": cookie, "content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", path, urlencode(fields), headers)
    response = connection.getresponse()
    found = response.status, response.getheader("content-type"), response.read()
    connection.close()
    return found
