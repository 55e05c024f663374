"""The pages of the feedback service in Chromium: by keys, Tab and touch, without a script, and hostile texts.

Skipped where there is no browser.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairlead.types import Message
from services.feedback.store.judged import Entry, Ranking
from services.feedback.store.records import NewAnswer, NewPerson, NewPrompt, NewTask
from tests.feedback_browser import AXE, axe_source, chromium, hidden_focus, look, tab
from tests.feedback_scene import populate
from tests.feedback_service import Feedback, feedback
from tests.hostile_texts import MARK, hostile_texts

WIDE = {"viewport": {"width": 1280, "height": 800}}
NARROW = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
HOSTILE = (
    "<script>document.title = 'hacked'</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) <https://evil.example> ![x](https://evil.example/x.png)",
    "</textarea></pre></form><form action=https://evil.example><input name=q>",
    "\u202egnp.exe \x00 \x1b[31m \ud800 " + "\u0301" * 500,
    "x" * 190_000,
    "> " * 500 + "deep\n" + "- " * 500 + "deep",
    "{{ 7 * 7 }} {% raw %} ${7*7} %s &lt;b&gt;",
)

RAN = f"""() => {{
  const live = 'main :is(img, script, iframe, object, embed, style, link, base, math, template, [style]), '
    + 'main [autofocus], body > :not(a, header, nav, main, footer)';
  const found = [...document.querySelectorAll(live)].map((one) => one.outerHTML.slice(0, 200));
  for (const name of ['href', 'action', 'formaction', 'src', 'srcdoc'])
    for (const one of document.querySelectorAll(`body [${{name}}]`))
      if (new URL(one.getAttribute(name), location).origin !== location.origin) found.push(one.outerHTML);
  return document.title.includes('{MARK}') ? [...found, document.title] : found;
}}"""
"""What a hostile text has made of a page: live elements, places outside of the service, a title."""


@dataclass
class Pages:
    """A service with a scene, and a labeler who has not worked yet."""

    http: Feedback
    cookie: str
    person: str

    def cookie_of(self, handle: str) -> str:
        people = self.http.service.store.people
        return f"{self.http.service.cookie.name}={people.start_session(people.by_handle(handle).id)}"

    def said(self) -> list[Entry]:
        """Return what the labeler has said."""
        return self.http.service.store.log.of_person(self.person)


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    async with feedback(tmp_path) as http:
        populate(http.service.store, tasks=9)
        person = http.service.store.people.add(NewPerson("labeler", "zoe", active=True)).id
        found = Pages(http, "", person)
        found.cookie = found.cookie_of("zoe")
        yield found


async def start(page: Any) -> int:
    """Take a task to rank, and return how many answers it has."""
    await page.goto("/")
    await page.get_by_role("button", name="Start").click()
    await page.wait_for_selector("article")
    return await page.locator("article").count()


def ranks_shown(entry: Entry) -> list[int]:
    body = entry.body or {}
    return [body["ranks"][answer] for answer in body["shown"]]


async def test_rank_by_keys_only(pages: Pages) -> None:
    async with chromium() as browser:
        page = await tab(browser, pages.http.address, pages.cookie, **WIDE)
        answers = await start(page)
        await page.keyboard.press("?")
        assert await page.locator("dialog").is_visible()
        await page.keyboard.press("Escape")
        for key in "3133"[:answers]:
            await page.keyboard.press(key)
        await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("2")
        async with page.expect_response(lambda response: response.url.endswith("/draft")) as saved:
            await page.keyboard.press("t")
            await page.keyboard.type("by 1 key")
        assert (await saved.value).status == 204
        await page.keyboard.press("Control+Enter")
        await page.wait_for_selector("text=Handed in")
        (entry,) = pages.said()
        chosen = [int(rank) for rank in "3133"[:answers]]
        chosen[-2] = 2
        assert ranks_shown(entry) == [sorted(set(chosen)).index(rank) + 1 for rank in chosen]
        assert (entry.body or {})["note"] == "by 1 key"
        assert page.problems == []


@pytest.mark.slow
async def test_rank_by_tab_and_space_only(pages: Pages) -> None:
    async with chromium() as browser:
        page = await tab(browser, pages.http.address, pages.cookie, **WIDE)
        answers = await start(page)
        for field in (*(f"place-{place}" for place in range(1, answers + 1)), "action"):
            for _ in range(40):
                await page.keyboard.press("Tab")
                if await page.evaluate("() => document.activeElement.name ?? ''") == field:
                    break
            await page.keyboard.press("Space")
        await page.wait_for_selector("text=Handed in")
        assert ranks_shown(pages.said()[0]) == [1] * answers


@pytest.mark.slow
async def test_rank_by_touch_on_a_narrow_screen(pages: Pages) -> None:
    async with chromium() as browser:
        page = await tab(browser, pages.http.address, pages.cookie, **NARROW)
        answers = await start(page)
        for place in range(1, answers + 1):
            await page.locator(f"#place-{place} .choice").nth(answers - place).tap()
        await page.get_by_role("button", name="Hand in").tap()
        await page.wait_for_selector("text=Handed in")
        assert ranks_shown(pages.said()[0]) == list(range(answers, 0, -1))
        await page.get_by_text("Undo or change it").tap()
        await page.locator("#place-1 .choice").nth(0).tap()
        await page.get_by_role("button", name="Save the change").tap()
        await page.wait_for_selector("text=Your change is in the log")
        assert ranks_shown(pages.said()[1])[0] == 1


@pytest.mark.slow
async def test_rank_compare_and_skip_without_javascript(pages: Pages) -> None:
    async with chromium() as browser:
        page = await tab(browser, pages.http.address, pages.cookie, java_script_enabled=False, **WIDE)
        answers = await start(page)
        await page.get_by_role("button", name="Hand in").click()
        await page.get_by_text("Choose a place for answer A.").wait_for()
        async with page.context.expect_page() as opened:
            await page.get_by_role("button", name="Compare").click()
        comparison = await opened.value
        await comparison.get_by_role("heading", name="From A to B").wait_for()
        for place in range(1, answers + 1):
            await page.locator(f"input[name=place-{place}]").nth(place - 1).check()
        await page.get_by_role("button", name="Save draft").click()
        await page.get_by_text("Draft saved.").wait_for()
        await page.get_by_role("button", name="Hand in").click()
        await page.get_by_text("Handed in.").wait_for()
        assert ranks_shown(pages.said()[0]) == list(range(1, answers + 1))
        await page.get_by_label("Not my field").check()
        await page.get_by_role("button", name="Skip", exact=True).click()
        await page.wait_for_load_state()
        assert [one.kind for one in pages.said()] == ["judgment", "skip"]


def paths_of(pages: Pages) -> dict[str, list[str]]:
    """Return the paths of all pages, by the handle of who looks at them."""
    store = pages.http.service.store
    project = store.projects.get("default").id
    offers = [
        store.leases.take(pages.person, project, kinds=[kind]) for kind in ("rank", "pair", "write", "edit")
    ]
    decided = next(one.task for one in store.log.entries() if one.kind == "adjudication")
    judged = next(one.id for one in store.log.entries() if one.kind == "judgment")
    judge = store.people.get(next(one.person or "" for one in store.log.entries() if one.id == judged))
    prompt = store.prompts.page()[0].id
    own = [
        "/projects/default/quiz",
        "/projects/default/mine",
        "/projects/default/guidelines?version=2&since=1",
    ]
    lead = (
        "overview",
        "agreement",
        "labelers",
        "judges",
        "bias",
        "disagreements",
        "tasks",
        "rounds",
        "exports",
    )
    return {
        "": ["/sign-in", "/about"],
        "zoe": ["/", *own, *(f"/assignments/{one.assignment.id}" for one in offers if one)],
        judge.handle or "": [f"/judgments/{judged}", "/projects/default/mine"],
        "lena": [
            "/",
            "/forget",
            "/forget?find=anna",
            "/forget?find=parcel",
            f"/forget/person/{judge.id}",
            f"/forget/prompt/{prompt}",
            "/people",
            "/prompts",
            "/audit?verify=yes",
            "/nothing",
            f"/tasks/{decided}",
        ]
        + [f"/projects/default/{name}" for name in (*lead, "guidelines")],
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_every_page_is_accessible(pages: Pages) -> None:
    axe = axe_source()
    wrong = []
    async with chromium() as browser:
        for options in (WIDE, NARROW, {**WIDE, "color_scheme": "dark"}):
            for handle, paths in paths_of(pages).items():
                cookie = pages.cookie_of(handle) if handle else ""
                page = await tab(browser, pages.http.address, cookie, bypass_csp=True, **options)
                for path in paths:
                    await page.goto(path)
                    page.problems = [one for one in page.problems if "404" not in one]
                    await page.evaluate(axe)
                    found = [*await look(page), *await page.evaluate(AXE)]
                    if "color_scheme" not in options:
                        found += await hidden_focus(page)
                    wrong += [(path, options["viewport"]["width"], one) for one in found]
                await page.context.close()
    assert wrong == []


def prompt_of(text: str) -> NewPrompt:
    return NewPrompt((Message("user", text),))


@pytest.mark.slow
async def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    async with feedback(tmp_path, project__kinds=["rank", "edit"]) as http, chromium() as browser:
        store = http.service.store
        texts = tuple(NewAnswer(one) for one in HOSTILE)
        tasks = [NewTask("rank", prompt_of(HOSTILE[0]), texts)]
        tasks += [NewTask("edit", prompt_of(one), (NewAnswer(one),)) for one in HOSTILE]
        store.tasks.add(store.projects.get("default").id, tasks)
        person = store.people.add(NewPerson("labeler", "zoe", active=True)).id
        cookie = f"{http.service.cookie.name}={store.people.start_session(person)}"
        page = await tab(browser, http.address, cookie, **NARROW)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        assert await start(page) == len(HOSTILE)
        assert await look(page) == []
        assert await page.title() == "Rank · Fairlead"
        assert (
            await page.locator("main a[href*=evil], main img, main script, form[action*=evil]").count() == 0
        )
        for place in range(1, len(HOSTILE) + 1):
            await page.locator(f"input[name=place-{place}]").nth(0).check()
        await page.get_by_role("button", name="Hand in").click()
        await page.wait_for_selector("text=Handed in")
        for _ in HOSTILE:
            assert await look(page) == []
            assert await page.title() == "Edit · Fairlead"
            await page.locator("#skip .choice").nth(2).click()
            await page.get_by_role("button", name="Skip", exact=True).click()
            await page.wait_for_load_state()
        assert {one.split("/")[2] for one in requests} == {http.address}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_500_hostile_texts_run_nothing_and_ask_nobody(tmp_path: Path) -> None:
    texts = hostile_texts()
    parts = [texts[start : start + 16] for start in range(0, len(texts), 16)]
    async with feedback(tmp_path, project__max_answers=16) as http, chromium() as browser:
        store = http.service.store
        project = store.projects.get("default").id
        store.tasks.add(
            project, [NewTask("rank", prompt_of(part[0]), tuple(map(NewAnswer, part))) for part in parts]
        )
        store.projects.add_guideline(project, "\n\n".join(texts[5:200]))
        new = [NewPrompt((Message("user", text),), state="new") for text in texts[5:]]
        store.prompts.add(new)
        person = store.people.add(NewPerson("labeler", "zoe", role="lead", active=True)).id
        page = await tab(
            browser, http.address, f"{http.service.cookie.name}={store.people.start_session(person)}", **WIDE
        )
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        paths = ["/prompts", "/projects/default/guidelines", "/projects/default/tasks"]
        for _ in parts:
            offer = store.leases.take(person, project)
            assert offer is not None
            paths += [f"/assignments/{offer.assignment.id}", f"/tasks/{offer.assignment.task}"]
            ranks = {answer: place for place, (answer, _) in enumerate(offer.answers, start=1)}
            await page.goto(paths[-2])
            assert await page.locator("article").count() == len(offer.answers)
            assert await page.evaluate(RAN) == [], paths[-2]
            await page.keyboard.press("1")
            await page.keyboard.press("Escape")
            note = texts[len(paths)][:9_000]
            store.judgments.hand_in(offer.assignment.id, person, Ranking(ranks, note=note))
        for path in (*paths[:3], *paths[4::2], "/projects/default/mine"):
            await page.goto(path)
            assert await page.evaluate(RAN) == [], path
        assert page.problems == []
        assert {one.split("/")[2] for one in requests} == {http.address}
