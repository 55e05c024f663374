"""The live page of a run over HTTP: what it shows, what changes, who may see it; and in Chromium."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairlead.config import RunFolder
from fairlead.config.http import HttpSection
from fairlead.local.process import ChildProcess, ProcessSpec
from fairlead.local.run_files import write_record
from services.dashboard.app import make_app
from services.dashboard.visitors import Visitors
from services.dashboard.watch import RunWatch
from services.runtime.http.server import HttpServer
from tests.feedback_browser import AXE, SIDEWAYS, SMALL_TEXT, axe_source, chromium, tab
from tests.gateway_world import HttpResponse, ask

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=alert(1)> \u202e \ud800"


def add_update(folder: RunFolder, update: int, **changes: float) -> None:
    """Append the metrics of an update, and its samples, as the trainer does."""
    figures = {
        "reward": 0.1 * update,
        "kl": 0.05 * update,
        "entropy": 2.0 - 0.05 * update,
        "eos_rate": 1.0,
        "response_length": 16.0,
        "seconds_wait": 0.6,
        "seconds_train": 0.4,
        "seconds": 1.0,
        "queue_waiting": 3.0,
        "queue_in_flight": 12.0,
        "queue_outcomes": 0.0,
        "staleness_mean": 0.5,
        "staleness_max": 1.0,
        "guard_kl": 0.05 * update,
        "guard_entropy_ratio": 1.0 - 0.025 * update,
        "guard_length_ratio": 1.0,
    } | changes
    with folder.metrics("ppo").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": update, "update": update, "time": time.time(), **figures}) + "\n")
    with folder.rollout_samples.open("a", encoding="utf-8") as file:
        for number, prompt in enumerate(("who are you?", HOSTILE)):
            row = {"update": update, "task": number, "prompt": prompt, "text": f"answer {update} {HOSTILE}"}
            file.write(json.dumps(row | {"ended": True, "score": 1.0 * number}) + "\n")
    now = {
        "stage": "ppo",
        "phase": "wait",
        "step": update,
        "total": 24,
        "figures": figures,
        "since": time.time(),
        "waiting_for": "8 of 64 rollouts",
        "eta_seconds": 75.0,
    }
    folder.progress.write_text(json.dumps(now), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run of this process that has made 12 updates."""
    made = RunFolder(tmp_path / "runs" / "tiny")
    made.logs.mkdir(parents=True)
    made.config.write_text("[ppo]\nbatch_size = 64\nmini_batch_size = 64\n")
    for update in range(1, 13):
        add_update(made, update)
    processes = []
    for name in ("valkey", "trainer", "policy-0"):
        spec = ProcessSpec(name=name, command=("true",))
        processes.append(ChildProcess(spec, log=made.log(name), environment={}))
        processes[-1].mark_ready()
    write_record(made.supervisor, processes, stage="ppo", started=time.time() - 60, outcome=None)
    return made


@dataclass
class Dashboard:
    """A server with its address."""

    address: str

    async def get(self, path: str, method: str = "GET", **headers: str) -> HttpResponse:
        return await asyncio.to_thread(ask, self.address, method, path, None, headers)

    async def events(self, version: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """Yield the name and the data of each server-sent event."""
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 22)
        try:
            writer.write(f"GET /events?after={version} HTTP/1.1\r\nHost: {self.address}\r\n\r\n".encode())
            name = ""
            while line := (await reader.readline()).decode().strip("\r\n") or not reader.at_eof():
                if line is True:
                    continue
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))
        finally:
            writer.close()


@asynccontextmanager
async def serving(folder: RunFolder, *, key: str = "") -> AsyncIterator[Dashboard]:
    section = HttpSection(bind="127.0.0.1:0")
    async with HttpServer(section, name="dashboard", drain_seconds=1.0) as server:
        watch = RunWatch(folder, stopped=lambda: server.draining)
        tasks = [
            asyncio.create_task(watch.run()),
            asyncio.create_task(server.serve(make_app(watch, Visitors(key), section))),
        ]
        try:
            yield Dashboard(server.address)
        finally:
            server.stop()
            await tasks[1]
            tasks[0].cancel()


async def test_page_shows_the_run_and_streams_what_changes(folder: RunFolder) -> None:
    async with serving(folder) as dashboard:
        page = await dashboard.get("/")
        assert page.status == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert page.headers["cache-control"] == "no-store"
        for shown in (
            "Learning: update 12 of 24; waits for rollouts 60% of the time.",
            "stop above 10",
            "entropy ratio",
            "policy-0",
            "who are you?",
            "&lt;script&gt;document.title",
        ):
            assert shown in page.body.decode()
        assert "<script>document" not in page.body.decode()
        assert "<img" not in page.body.decode()
        assert ' style="' not in page.body.decode()
        for path in ("/page.css", "/live.js", "/icon.svg"):
            assert (await dashboard.get(path)).headers["x-content-type-options"] == "nosniff"

        version = page.body.decode().partition('data-version="')[2].partition('"')[0]
        stream = dashboard.events(version)
        add_update(folder, 13, guard_entropy_ratio=0.4)
        found: dict[str, str] = {}
        async for name, parts in stream:
            assert name == "parts"
            found |= parts
            if "update 13 of 24" in found.get("state", "") and "learning-pictures" in found:
                break
        await stream.aclose()
        assert "guard warns: entropy ratio 0.4 &lt; 0.5" in found["state"]
        assert "answer 13" in found["samples"]
        # What did not change is not sent.
        assert "time-tables" not in found

        stream = dashboard.events("of-another-server")
        assert await anext(stream) == ("reload", {})
        await stream.aclose()


async def test_requests_under_another_name_and_unknown_paths_are_refused(folder: RunFolder) -> None:
    async with serving(folder) as dashboard:
        for path in ("/", "/events", "/live.js"):
            refused = await dashboard.get(path, host="evil.example")
            assert (refused.status, "evil.example" in refused.body.decode()) == (403, True)
        assert (await dashboard.get("/nosuch")).status == 404
        assert (await dashboard.get("/", "POST")).status == 405
        assert (await dashboard.get("/../supervisor.json")).status == 404


async def test_page_with_a_key_needs_its_link(folder: RunFolder) -> None:
    async with serving(folder, key="secret") as dashboard:
        for path in ("/", "/?key=wrong", "/events", "/page.css"):
            assert (await dashboard.get(path)).status == 401
        answer = await dashboard.get("/?key=secret")
        assert (answer.status, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        page = await dashboard.get("/", cookie=cookie.partition(";")[0])
        assert page.status == 200
        assert "secret" not in page.body.decode()


async def test_empty_folder_has_a_page(tmp_path: Path) -> None:
    async with serving(RunFolder(tmp_path)) as dashboard:
        page = await dashboard.get("/")
        assert "No stage has reported progress yet." in page.body.decode()


@pytest.mark.slow
async def test_page_in_a_browser(folder: RunFolder) -> None:
    axe = axe_source()
    async with chromium() as browser, serving(folder) as dashboard:
        for width in (1280, 768, 320):
            for scheme in ("light", "dark"):
                options: dict[str, Any] = {
                    "viewport": {"width": width, "height": 800},
                    "color_scheme": scheme,
                }
                page = await tab(browser, dashboard.address, **options)
                await page.goto("/")
                await page.wait_for_selector(".strip")
                assert await page.evaluate(SIDEWAYS) == 0
                assert await page.evaluate(SMALL_TEXT) == []
                assert page.problems == []
                assert await page.title() == "Run tiny"
                await page.context.close()
                if width != 768:
                    checked = await tab(browser, dashboard.address, bypass_csp=True, **options)
                    await checked.goto("/")
                    await checked.evaluate(axe)
                    assert await checked.evaluate(AXE) == []
                    await checked.context.close()
        page = await tab(browser, dashboard.address)
        await page.goto("/")
        add_update(folder, 13)
        await page.wait_for_selector("text=update 13 of 24")
        await page.wait_for_selector("text=answer 13")
        # A chart shows its figures under the pointer.
        await page.locator(".hit rect").first.hover()
        assert await page.locator(".hit text").first.is_visible()
        assert page.problems == []
        await page.context.close()
