"""Datasets with a card, and files of other tools, through the API and the verbs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fairlead.cli.main import app
from tests.feedback_service import Feedback, feedback, ranks_by_text, task


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Feedback]:
    async with feedback(tmp_path, project__overlap=2, project__shared_share=1) as found:
        yield found


async def judged(http: Feedback) -> None:
    await http.local.post("/tasks", {"tasks": [task(n) for n in range(3)]})
    for name in ("anna", "ben"):
        person = await http.program(name)
        while shown := await person.next():
            body = {"ranks": ranks_by_text(shown)}
            await person.post(f"/assignments/{shown['assignment']}/judgment", body)


async def verb(*words: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["feedback", *words])
    assert result.exit_code == 0, result.output
    return result.output


async def test_card_verb_writes_a_folder(http: Feedback, tmp_path: Path) -> None:
    await judged(http)
    out = tmp_path / "dataset"
    words = ("--license", "mit", "--language", "de", "--title", "Help", "--address", http.address)
    printed = await verb("card", "--out", str(out), *words)
    snapshots = (await http.local.get("/snapshots"))["snapshots"]
    assert snapshots[-1]["digest"] in printed
    assert len((out / "rankings" / "train.jsonl").read_text().splitlines()) == 6
    header = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert (header["pretty_name"], header["license"], header["language"]) == ("Help", "mit", ["de"])
    result = await asyncio.to_thread(CliRunner().invoke, app, ["feedback", "card", "--out", str(out), *words])
    assert result.exit_code == 2
    assert "a folder that is absent or empty" in result.output


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
async def test_files_of_other_tools_go_out_and_in(http: Feedback, tmp_path: Path, tool: str) -> None:
    await judged(http)
    file = tmp_path / "judged"
    await verb("export", "--format", tool, "--out", str(file), "--address", http.address)
    (tmp_path / "other").mkdir()
    async with feedback(tmp_path / "other") as other:
        first = await verb("import", tool, str(file), "--address", other.address)
        again = await verb("import", tool, str(file), "--address", other.address)
        figures = await other.local.get("/figures/agreement")
        name, field = ("records", "fields") if tool == "argilla" else ("tasks", "data")
        wrong = await other.local.ask("POST", f"/imports/{tool}", {name: [{field: 3}]})
        denied = await (await other.program("carl")).ask("POST", f"/imports/{tool}", {name: [{}]})
    assert "3 new tasks, 6 new judgments, 0 known before" in first
    assert "0 new tasks, 0 new judgments, 6 known before" in again
    assert (figures["agreement"]["tasks"], figures["agreement"]["rate"]) == (3, 1.0)
    assert wrong.status == 400
    assert f"{name}[0].{field}: got 3" in json.dumps(wrong.json)
    assert denied.status == 403
