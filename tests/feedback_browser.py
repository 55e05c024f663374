"""Chromium at the pages of the feedback service, and what must hold of every page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
AXE_FOLDERS = (Path(os.environ.get("AXE_NODE_MODULES", "node_modules")), Path("/usr/lib/node_modules"))

HIDDEN_FOCUS = """() => {
  const active = document.activeElement, found = active.closest('label') ?? active;
  const box = found.getBoundingClientRect();
  const x = Math.min(Math.max(box.left + box.width / 2, 1), innerWidth - 1);
  const points = [box.top + 4, box.top + box.height / 2, Math.min(box.bottom, innerHeight) - 4];
  const seen = points.some((y) => {
    if (y < 0 || y > innerHeight) return false;
    const top = document.elementFromPoint(x, y);
    return top && (found.contains(top) || top.contains(found) && !top.matches('.bar'));
  });
  const name = active.id || active.name || active.textContent.slice(0, 30);
  return seen ? null : `${active.tagName} ${name} at ${box.top}`;
}"""
SMALL_TARGETS = """() => [...document.querySelectorAll('a, button, input, select, textarea, summary')]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest('.skip-link'))
  .map((one) => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.width < 24 || box.height < 24)
  .map(([one, box]) => `${one.tagName} ${one.textContent.trim().slice(0, 30)} ${box.width}x${box.height}`)"""
SMALL_TEXT = """() => {
  const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !one.checkVisibility() || one.closest('svg')) continue;
    if (parseFloat(getComputedStyle(one).fontSize) >= 12) continue;
    found.add(`${one.tagName} ${one.textContent.slice(0, 30)}`);
  }
  return [...found];
}"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
AXE = """async () => (await axe.run()).violations.map((one) =>
  `${one.id}: ${one.nodes.map((node) => node.target.join(' ') + ' ' + node.failureSummary).join(' | ')}`)"""


def axe_source() -> str:
    """Return axe-core of the folder AXE_NODE_MODULES, or of node_modules; skip the test without it."""
    for folder in AXE_FOLDERS:
        if (file := folder / "axe-core" / "axe.min.js").exists():
            return file.read_text()
    pytest.skip("there is no axe-core: npm install axe-core, and set AXE_NODE_MODULES to its node_modules")


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Start a browser; skip the test where there is none."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        pytest.skip("playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no browser: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


async def tab(browser: Any, address: str, cookie: str = "", **options: Any) -> Any:
    """Open a tab, signed in with a cookie, whose problems are kept in its list `problems`."""
    context = await browser.new_context(base_url=f"http://{address}", **options)
    context.set_default_timeout(60_000)
    if cookie:
        name, _, value = cookie.partition("=")
        await context.add_cookies([{"name": name, "value": value, "url": f"http://{address}"}])
    page = await context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: page.problems.append(f"dialog: {dialog.message}"))
    return page


async def look(page: Any) -> list[str]:
    """Return what is wrong on a page besides what axe reports."""
    found = [f"small target: {one}" for one in await page.evaluate(SMALL_TARGETS)]
    found += [f"small text: {one}" for one in await page.evaluate(SMALL_TEXT)]
    if (width := await page.evaluate(SIDEWAYS)) > 0:
        found.append(f"scrolls sideways by {width}")
    return found + page.problems


async def hidden_focus(page: Any, *, stops: int = 80) -> list[str]:
    """Return the elements that are hidden while they have the focus, going through the page by Tab."""
    await page.evaluate("() => { scrollTo(0, 0); document.activeElement.blur(); }")
    found = []
    for _ in range(stops):
        await page.keyboard.press("Tab")
        if await page.evaluate("() => document.activeElement === document.body"):
            break
        if (hidden := await page.evaluate(HIDDEN_FOCUS)) is not None:
            found.append(f"hidden focus: {hidden}")
    return found
