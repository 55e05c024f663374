"""The API of the feedback service over real HTTP: tasks to snapshots, who may do what, what is hidden."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from fairlead.config import load
from fairlead.data.comparisons import RankedResponses
from fairlead.data.records import load_demonstrations, load_preferences
from services.feedback.pages import routers as page_routers
from services.feedback.pages.page import Renderer
from services.feedback.routes import ADMIN, OPEN, ROUTES, need_of, template_of
from tests.feedback_service import API, Feedback, feedback, ranks_by_text, task
from tests.unit.services.runtime.keys_world import Keys


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Feedback]:
    kinds = ["rank", "pair", "write", "edit", "prompt"]
    async with feedback(tmp_path, project__kinds=kinds, project__overlap=2, project__shared_share=1) as found:
        yield found


async def test_tasks_become_a_snapshot_that_the_stages_read(http: Feedback, tmp_path: Path) -> None:
    added = await http.local.post("/tasks", {"tasks": [task(n) for n in range(6)]})
    again = await http.local.post("/tasks", {"tasks": [task(n) for n in range(7)]})
    assert [one["new"] for one in again["tasks"]] == [False] * 6 + [True]
    assert [one["id"] for one in again["tasks"][:6]] == [one["id"] for one in added["tasks"]]
    anna, ben = await http.signed_in(handle="anna"), await http.program("ben")
    judged = []
    for person in (anna, ben):
        while shown := await person.next():
            body = {"ranks": ranks_by_text(shown), "ratings": {shown["answers"][0]["id"]: 7}, "seconds": 2.5}
            place = f"/assignments/{shown['assignment']}/judgment"
            receipt = await person.post(place, body, idempotency_key=f"k{len(judged)}")
            assert receipt == {"id": receipt["id"], "late": False, "repeated": False}
            repeated = await person.post(place, body, idempotency_key=f"k{len(judged)}")
            assert repeated == receipt | {"repeated": True}
            judged.append(receipt["id"])
    assert len(judged) == 14
    progress = await http.local.get("/figures/progress")
    assert (progress["tasks"], progress["done"], progress["wanted"]) == ({"closed": 7}, 14, 0)
    figures = await http.local.get("/figures/agreement")
    assert (figures["agreement"]["rate"], figures["agreement"]["tasks"]) == (1.0, 7)
    labelers = (await http.local.get("/figures/labelers"))["labelers"]
    assert sorted(one["handle"] for one in labelers) == ["anna", "ben"]
    assert (await http.local.get("/figures/bias"))["position"]["judgments"] == 14

    snapshot = await http.local.post("/snapshots", {})
    assert snapshot["entries"] == 14
    assert (await http.local.post("/snapshots", {}))["digest"] == snapshot["digest"]
    file = tmp_path / "rankings.jsonl"
    answer = await http.local.ask("GET", f"/snapshots/{snapshot['digest']}.rankings")
    file.write_bytes(answer.body)
    assert answer.body == (await http.local.ask("GET", f"/snapshots/{snapshot['digest']}.rankings")).body
    config = load(overrides={"data.preferences": str(file), "data.heldout_fraction": 0.2})
    read = load_preferences(config)
    rankings = [*read.train, *read.heldout]
    assert len(rankings) == 14
    for one in rankings:
        assert isinstance(one, RankedResponses)
        assert sorted(one.texts) == [f"answer {str(one.prompt).split()[1]} {place}" for place in range(3)]
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["judgment"] for line in lines] == judged
    assert {line["kind"] for line in lines} == {"labeler", "simulated"}
    assert not {line["labeler"] for line in lines} & {"anna", "ben"}
    pairs = (await http.local.ask("GET", f"/snapshots/{snapshot['digest']}.pairs")).body.splitlines()
    assert len(pairs) == 14 * 3
    assert (await http.local.ask("GET", f"/snapshots/{snapshot['digest']}.csv")).status == 404
    about = {"title": "Help", "license": "all rights\nreserved"}
    refused = await http.local.ask("POST", f"/snapshots/{snapshot['digest']}/folder", about)
    assert refused.status == 400
    assert b"an identifier such as cc-by-4.0" in refused.body
    about["license"] = "cc-by-4.0"
    zipped = await http.local.ask("POST", f"/snapshots/{snapshot['digest']}/folder", about)
    with zipfile.ZipFile(io.BytesIO(zipped.body)) as archive:
        names = archive.namelist()
        assert archive.read("rankings/train.jsonl") == answer.body
        assert b'license: "cc-by-4.0"' in archive.read("README.md")
    assert names == ["README.md", "figures.json", "pairs/train.jsonl", "rankings/train.jsonl"]


async def test_followers_see_each_judgment_once(http: Feedback) -> None:
    await http.local.post("/tasks", {"tasks": [task(n) for n in range(3)]})
    anna = await http.signed_in(handle="anna")
    seen, after = [], 0
    for _ in range(3):
        shown = await anna.next()
        await anna.post(f"/assignments/{shown['assignment']}/judgment", {"ranks": ranks_by_text(shown)})
        page = await http.local.get(f"/judgments?after={after}&limit=1")
        seen += page["judgments"]
        after = page["after"]
    first, second, _ = seen
    revised = dict(zip(first["said"]["ranks"], (1, 1, 2), strict=True))
    revision = await anna.post(f"/judgments/{first['judgment']}/revision", {"ranks": revised})
    await anna.post(f"/judgments/{second['judgment']}/withdrawal")
    page = await http.local.get(f"/judgments?after={after}&project=default")
    assert [one["kind"] for one in page["judgments"]] == ["revision", "withdrawal"]
    assert [one["replaces"] for one in page["judgments"]] == [first["judgment"], second["judgment"]]
    assert page["judgments"][0]["judgment"] == revision["id"]
    assert sorted(one["rank"] for one in page["judgments"][0]["line"]["responses"]) == [1, 1, 2]
    assert "line" not in page["judgments"][1]
    last = await http.local.get(f"/judgments?after={page['after']}")
    assert last == {"judgments": [], "after": page["after"]}
    assert (await anna.ask("POST", f"/judgments/{first['judgment']}/withdrawal")).status == 409


async def test_programs_get_and_hand_in_several_at_once(http: Feedback) -> None:
    await http.local.post("/tasks", {"tasks": [task(n) for n in range(5)]})
    anna, ben = await http.signed_in(handle="anna"), await http.signed_in(handle="ben")
    mine = (await anna.post("/assignments", {"count": 3}))["assignments"]
    assert [one["prompt"][0]["content"] for one in mine] == [f"question {n}" for n in range(3)]
    held = {one["assignment"] for one in mine}
    assert {
        one["assignment"] for one in (await anna.post("/assignments", {"count": 3}))["assignments"]
    } == held
    assert (await anna.next())["assignment"] in held
    assert len((await anna.post("/assignments", {"count": 9}))["assignments"]) == 5
    assert (await ben.ask("POST", "/assignments", {"count": 101})).status == 400
    said = [{"assignment": one["assignment"], "ranks": ranks_by_text(one)} for one in mine]

    wrong = [*said[:2], said[2] | {"ranks": {}}]
    refused = await anna.ask("POST", "/judgments", {"judgments": wrong})
    assert (refused.status, refused.json["error"]["field"]) == (400, "judgments[2].ranks")
    assert (await http.local.get("/judgments"))["judgments"] == []  # all or none
    assert (await ben.ask("POST", "/judgments", {"judgments": said})).status == 404
    twice = await anna.ask("POST", "/judgments", {"judgments": [said[0], said[0]]})
    assert (twice.status, twice.json["error"]["field"]) == (400, "judgments[1].assignment")

    receipts = (await anna.post("/judgments", {"judgments": said}))["receipts"]
    assert [one["repeated"] for one in receipts] == [False] * 3
    again = (await anna.post("/judgments", {"judgments": said}))["receipts"]
    assert again == [one | {"repeated": True} for one in receipts]
    found = (await http.local.get("/judgments"))["judgments"]
    assert [one["judgment"] for one in found] == [one["id"] for one in receipts]


async def test_drafts_leases_skips_and_texts(http: Feedback, tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    tasks = [
        {"prompt": chat, "kind": "write"},
        {"prompt": "plain", "kind": "edit", "responses": ["draft"]},
        {"prompt": "invent", "kind": "prompt"},
        task(1),
    ]
    await http.local.post("/tasks", {"tasks": tasks})
    anna = await http.signed_in(handle="anna")
    shown = await anna.next()
    assert [turn["role"] for turn in shown["prompt"]] == ["system", "user"]
    place = f"/assignments/{shown['assignment']}"
    assert (await anna.ask("PUT", f"{place}/draft", {"text": "so far"})).status == 204
    lease = (await anna.ask("PUT", f"{place}/lease")).json
    assert lease["until"] >= shown["until"]
    assert (await anna.next())["draft"] == {"text": "so far"}
    await anna.post(f"{place}/judgment", {"text": "hi !"})
    assert (await anna.get(place))["state"] == "done"
    assert (await anna.ask("PUT", f"{place}/lease")).status == 409
    edit = await anna.next()
    await anna.post(
        f"/assignments/{edit['assignment']}/judgment",
        {"text": "better", "base": edit["answers"][0]["id"], "note": "shorter"},
    )
    invented = await anna.next()
    await anna.post(f"/assignments/{invented['assignment']}/judgment", {"text": "a new question"})
    rank = await anna.next()
    await anna.post(f"/assignments/{rank['assignment']}/skip", {"reason": "unclear", "note": "?"})
    assert await anna.next() is None
    empty = await anna.ask("POST", "/next", {})
    assert (empty.status, empty.body, empty.headers["retry-after"]) == (204, b"", "5")
    bad = await anna.ask("POST", f"/assignments/{rank['assignment']}/skip", {"reason": "boring"})
    assert (bad.status, bad.error["field"]) == (400, "reason")

    snapshot = await http.local.post("/snapshots", {"kinds": ["write", "edit", "prompt"]})
    place = f"/snapshots/{snapshot['digest']}"
    file = tmp_path / "demonstrations.jsonl"
    file.write_bytes((await http.local.ask("GET", f"{place}.demonstrations")).body)
    read = load_demonstrations(load(overrides={"data.demonstrations": str(file)}))
    assert len(read.train) + len(read.heldout) == 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = [(one["prompt"], one["completion"], one["guideline"]) for one in lines]
    said = [{"role": "assistant", "content": "hi !"}]
    assert found == [(chat, said, 0), ("plain", "better", 0)]
    (pair,) = (json.loads(x) for x in (await http.local.ask("GET", f"{place}.pairs")).body.splitlines())
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("plain", "better", "draft")
    prompts = [json.loads(x) for x in (await http.local.ask("GET", f"{place}.prompts")).body.splitlines()]
    assert [one["prompt"] for one in prompts] == [chat, "plain", "a new question"]
    sample = http.registry.get_sample_value
    assert sample("fairlead_feedback_judgments_total", {"kind": "text"}) == 3
    assert sample("fairlead_feedback_skips_total", {"reason": "unclear"}) == 1


async def test_labelers_learn_nothing_about_models_and_each_other(http: Feedback) -> None:
    await http.local.post("/tasks", {"tasks": [task(n, round=7, why="uncertain") for n in range(4)]})
    orders = {}
    for name in ("anna", "ben"):
        caller = await http.program(name)
        orders[name] = []
        while shown := await caller.next():
            orders[name].append([answer["text"] for answer in shown["answers"]])
            again = await caller.ask("GET", f"/assignments/{shown['assignment']}")
            place = f"/assignments/{shown['assignment']}/judgment"
            receipt = await caller.ask("POST", place, {"ranks": ranks_by_text(shown), "note": "secret-note"})
            for answer in (again, receipt, await caller.ask("GET", "/projects")):
                reported = (answer.body + repr(answer.headers).encode()).lower()
                for hidden in (b"secret", b"uncertain", b"overlap", b"why", b"round", b"seq", b"heldout"):
                    assert hidden not in reported, (hidden, reported)
            assert again.json["answers"] == shown["answers"]
    assert len(orders["anna"]) == len(orders["ben"]) == 4
    assert orders["anna"] != orders["ben"]


async def test_mistakes_name_the_field_of_the_body(http: Feedback) -> None:
    post = http.local.ask
    for body, field in (
        ({"tasks": [task(1), task(2, k=1)]}, "tasks[1].responses"),
        ({"tasks": [task(1) | {"responses": ["same", "same"]}]}, "tasks[0].responses"),
        ({"tasks": [task(1) | {"prompt": [{"role": "user", "content": "x" * 200_001}]}]}, None),
        ({"tasks": [task(1) | {"colour": 1}]}, "tasks[0].colour"),
        ({"tasks": [task(1, why="gold")]}, "tasks[0].gold"),
        ({"tasks": []}, "tasks"),
    ):
        answer = await post("POST", "/tasks", body)
        assert answer.status == 400, body
        assert answer.error["field"] == (field or "tasks[0].prompt[0].content")
    await post("POST", "/tasks", {"tasks": [task(1)]})
    anna = await http.signed_in(handle="anna")
    shown = await anna.next()
    place = f"/assignments/{shown['assignment']}/judgment"
    for body in ({}, {"ranks": {}}, {"ranks": {"x": 1}}, {"ranks": ranks_by_text(shown), "text": "x"}):
        assert (await anna.ask("POST", place, body)).status == 400
    bad_key = await anna.ask("POST", place, {"ranks": ranks_by_text(shown)}, idempotency_key="k" * 201)
    assert (bad_key.status, bad_key.error["field"]) == (400, "Idempotency-Key")
    bad_query = await http.local.ask("GET", "/judgments?after=-1")
    assert (bad_query.status, bad_query.error["field"]) == (400, "after")
    assert (await anna.ask("POST", "/next", {"project": "absent"})).status == 404
    ben = await http.program("ben")
    assert (await ben.ask("GET", f"/assignments/{shown['assignment']}")).status == 404


async def test_collected_prompts_are_screened_before_labelers_see_them(http: Feedback) -> None:
    chat = [{"role": "user", "content": "my card is 4111 1111 1111 1111"}]
    new = [
        {"prompt": chat, "state": "new", "user": "user-17", "consent": "notice-1"},
        {"prompt": "bad", "state": "new"},
    ]
    first, second = (await http.local.post("/prompts", {"prompts": new}))["prompts"]
    listed = (await http.local.get("/prompts"))["prompts"]
    assert {one["id"]: (one["prompt"], one["consent"]) for one in listed} == {
        first["id"]: (chat, "notice-1"),
        second["id"]: ("bad", ""),
    }
    masked = [{"role": "user", "content": "my card is [card]"}]
    screen = {"state": "screened", "masked": masked}
    answer = await http.local.ask("PATCH", f"/prompts/{first['id']}", screen)
    assert (answer.json["prompt"], answer.json["state"]) == (masked, "screened")
    assert (await http.local.ask("PATCH", f"/prompts/{first['id']}", screen)).status == 404
    wrong = await http.local.ask("PATCH", f"/prompts/{second['id']}", {"state": "screened", "masked": []})
    assert (wrong.status, wrong.error["field"]) == (400, "masked")
    await http.local.ask("PATCH", f"/prompts/{second['id']}", {"state": "rejected"})
    assert (await http.local.get("/prompts"))["prompts"] == []
    (gone,) = (await http.local.get("/prompts?state=rejected"))["prompts"]
    assert gone["prompt"] is None
    again = await http.local.ask("PATCH", f"/prompts/{second['id']}", {"state": "screened"})
    assert again.status == 409


async def test_forgetting_and_lineage(http: Feedback) -> None:
    await http.local.post("/tasks", {"tasks": [task(1) | {"user": "user-17"}, task(2)]})
    anna = await http.signed_in(handle="anna")
    for _ in range(2):
        shown = await anna.next()
        await anna.post(f"/assignments/{shown['assignment']}/judgment", {"ranks": ranks_by_text(shown)})
    snapshot = (await http.local.post("/snapshots", {}))["digest"]
    model = {"id": "rm-1", "kind": "reward_model", "made_from": [snapshot], "place": "runs/x"}
    await http.local.post("/artifacts", model)
    reach = await http.local.get("/reach/user/user-17")
    assert (len(reach["entries"]), sorted(reach["artifacts"])) == (1, sorted([snapshot, "rm-1"]))
    proof = await http.local.post("/forget", {"user": "user-17"})
    assert (proof["entries"], proof["artifacts"], proof["actor"]) == (1, sorted([snapshot, "rm-1"]), "local")
    assert (await http.local.get(f"/forget/{proof['id']}"))["scrubbed"] is not None
    assert (await http.local.get("/artifacts?tainted=true"))["artifacts"][0]["tainted"] is not None
    assert (await http.local.ask("GET", f"/snapshots/{snapshot}.rankings")).status == 409
    verified = await http.local.get("/log/verification")
    assert verified["erased"] == 1
    log = await http.local.get("/log")
    assert [one["kind"] for one in log["entries"]] == ["judgment", "judgment", "erasure"]
    assert log["entries"][0]["erased"] is True
    page = await http.local.get("/judgments")
    assert ["line" in one for one in page["judgments"]] == [False, True]
    assert (await http.local.get("/artifacts/rm-1"))["sources"][0]["id"] == snapshot
    assert "judgments" in {one["what"] for one in (await http.local.get("/accesses"))["accesses"]}


async def test_every_route_is_for_whom_the_table_says(tmp_path: Path, keys: Keys) -> None:
    scopes = ("feedback", "collect", "curate", "admin")
    secrets = {scope: keys.add(scope, scopes=(scope,)) for scope in scopes}
    async with feedback(tmp_path, sections={"keys.file": str(keys.path)}) as http:
        admin = http.key(secrets["admin"])
        people = {}
        for role in ("labeler", "reviewer", "lead", "auditor"):
            person = await admin.post("/people", {"handle": role, "role": role})
            link = await admin.post(f"/people/{person['id']}/invitation")
            people[role] = await http.signed_in(invitation=link["invitation"])
            used = await http.local.ask("POST", "/sessions", {"invitation": link["invitation"]})
            assert used.status == 401
        callers = people | {scope: http.key(secret) for scope, secret in secrets.items()}
        allowed: dict[str, set[str]] = {name: set() for name in callers}
        for (method, path), need in ROUTES.items():
            if need is OPEN:
                continue
            place = path.replace("{kind}", "person")
            assert (await http.local.ask_at(method, place)).status == 401, path
            assert (await http.local.ask_at(method, place, cookie="fairlead_feedback=old")).status == 401
            for name, caller in callers.items():
                body = {} if method in ("POST", "PATCH", "PUT") else None
                status = (await caller.ask_at(method, place, body)).status
                may = name in need.roles or name in need.scopes or name == "admin"
                if need.person and name in scopes:
                    may = False  # no program belongs to these keys yet
                assert (status != 403) == may, (method, path, name, status)
                assert status != 401
                if may:
                    allowed[name].add(path)
        projects = {
            f"{API}/projects",
            f"{API}/projects/{{project}}",
            f"{API}/projects/{{project}}/guidelines",
        }
        assert allowed["collect"] == projects | {f"{API}/exchanges"}
        assert not any(f"{API}/exchanges" in allowed[name] for name in ("labeler", "lead", "curate"))
        assert allowed["auditor"] > projects | {f"{API}/log", f"{API}/accesses"}
        assert f"{API}/forget" not in allowed["labeler"] | allowed["reviewer"]
        unknown = await people["labeler"].ask("GET", "/v1/feedback/nothing")
        assert unknown.status == 404
        assert (await http.local.ask("GET", "/v1/feedback/nothing")).status == 401
        assert (await people["labeler"].ask("GET", "/next")).status == 405

        robot = {"handle": "robot", "kind": "judge", "key": "feedback"}
        assert (await callers["curate"].ask("POST", "/people", robot)).status == 201
        assert (await callers["feedback"].get("/me"))["handle"] == "robot"
        found = (await admin.get("/people"))["people"]
        lead = next(one["id"] for one in found if one["handle"] == "lead")
        assert (await admin.ask("DELETE", f"/people/{lead}/sessions")).status == 204
        assert (await people["lead"].ask("GET", "/me")).status == 401
        paused = next(one["id"] for one in found if one["handle"] == "labeler")
        assert (await admin.ask("PATCH", f"/people/{paused}", {"state": "paused"})).status == 200
        assert (await people["labeler"].ask("POST", "/next", {})).status == 401
        assert (await http.local.ask("POST", "/sessions", {"handle": "lead"})).status == 403


async def test_table_lists_the_routes_of_the_app_and_nothing_else(http: Feedback) -> None:
    described = (await http.local.ask("GET", "/openapi.json")).json["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    hidden = {pair for pair in ROUTES if not pair[1].startswith((API, "/healthz", "/readyz", "/metrics"))}
    assert found == ROUTES.keys() - hidden
    routes = [route for one in page_routers(http.service, Renderer(http.service)) for route in one.routes]
    pages = {(method, one.path) for one in routes if isinstance(one, APIRoute) for method in one.methods}
    assert pages == {pair for pair in hidden if not pair[1].startswith(("/docs", "/openapi"))}
    for method, path in ROUTES:
        assert template_of(path) == path
        assert need_of(method, path.replace("{path}", "a/b")) == ROUTES[method, path]
    assert need_of("DELETE", f"{API}/tasks") == need_of("GET", "/new") == ADMIN
    assert (await http.local.ask("GET", "/docs")).status == 200


async def test_pages_of_others_and_other_hosts_are_refused(http: Feedback) -> None:
    anna = await http.signed_in(handle="anna")
    for headers in (
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
        {"host": "evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ):
        assert (await anna.ask("POST", "/next", {}, **headers)).status == 403, headers
    assert (await anna.ask("GET", "/me", host="evil.example")).status == 403
    for headers in ({"sec_fetch_site": "same-origin"}, {"origin": f"http://{http.address}"}):
        assert (await anna.ask("POST", "/next", {}, **headers)).status == 204
    for method, path, body in (("GET", "/people", None), ("POST", "/sessions", {"handle": "eve"})):
        proxied = await http.local.ask(method, path, body, x_forwarded_for="203.0.113.7")
        assert (proxied.status, "set feedback.origin" in proxied.error["message"]) == (403, True)
    gone = await anna.ask("DELETE", "/sessions/current")
    assert (gone.status, "Max-Age=0" in gone.headers["set-cookie"]) == (204, True)
    assert (await anna.ask("GET", "/me")).status == 401
    assert (await http.local.ask("POST", "/next", {})).status == 401


async def test_published_service_needs_sign_in_even_on_the_loopback_interface(tmp_path: Path) -> None:
    async with feedback(tmp_path, origin="https://feedback.example.com") as http:
        assert (await http.local.ask("POST", "/tasks", {"tasks": [task(1)]})).status == 401
        assert (await http.local.ask("POST", "/sessions", {"handle": "anna"})).status == 403
        assert http.service.cookie.name == "__Host-fairlead_feedback"
        assert http.service.link("/x") == "https://feedback.example.com/x"
