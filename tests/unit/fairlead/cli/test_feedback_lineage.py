"""`fairlead feedback reach` and `forget`: lineage both ways, and files without what was forgotten."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairlead.cli.main import app
from fairlead.feedback_client.exported import clean
from tests.feedback_service import Feedback, feedback, ranks_by_text, task

NOTE = "a note that only Anna would write"
TEXT = "an answer that only Anna would write"


async def judged(http: Feedback, handle: str, note: str) -> None:
    caller = await http.signed_in(handle=handle)
    while shown := await caller.next(kinds=["rank"]):
        body = {"ranks": ranks_by_text(shown), "note": note}
        await caller.post(f"/assignments/{shown['assignment']}/judgment", body)
    if shown := await caller.next(kinds=["write"]):
        await caller.post(f"/assignments/{shown['assignment']}/judgment", {"text": TEXT})


def holders(folder: Path, *texts: str) -> set[str]:
    return {
        one.name
        for one in folder.rglob("*")
        if one.is_file() and any(text.encode() in one.read_bytes() for text in texts)
    }


async def test_reach_and_forget_with_exports_and_a_backup(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    store = tmp_path / "store"
    store.mkdir()
    async with feedback(store, project__kinds=["rank", "write"], project__overlap=2) as http:

        async def run(*arguments: str) -> Result:
            command = ["feedback", *arguments, "--address", http.address]
            return await asyncio.to_thread(CliRunner().invoke, app, command)

        added = [task(n, overlap=2) for n in range(3)] + [task(9, k=0, kind="write", overlap=1)]
        await http.local.post("/tasks", {"tasks": added})
        await judged(http, "anna", NOTE)
        await judged(http, "ben", "a note that Ben would write")
        snapshots: dict[str, str] = {}
        for form in ("rankings", "argilla", "label-studio", "demonstrations"):
            done = await run("export", "--format", form, "--out", str(exports / form))
            assert done.exit_code == 0, done.output
            snapshots[form] = done.stdout.strip()
        snapshot = snapshots["rankings"]
        long_place = "/" + "a-long-folder/" * 8 + "round-0/policy"
        await http.local.post(
            "/artifacts",
            {"id": "rm", "kind": "reward_model", "made_from": [snapshot], "details": {"round": 0}},
        )
        policy = {"id": "po", "kind": "policy", "made_from": ["rm"], "place": long_place}
        await http.local.post("/artifacts", policy)
        (exports / "by_hand.txt").write_text(f"she said: {TEXT}\n")
        backup = tmp_path / "backup.db"
        with sqlite3.connect(store / "feedback.db") as raw:
            raw.execute("VACUUM INTO ?", (str(backup),))
        raw.close()

        shown = await run("reach", "--person", "anna")
        lines = shown.stdout.splitlines()
        assert lines[0] == "anna: 4 entries of the log"
        assert f"snapshot      {snapshot[:12]}  3 of 6 judgments" in lines
        kinds = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
        assert sorted(kinds) == ["policy", "reward", "snapshot", "snapshot"]
        assert max(map(len, lines)) <= 80
        judgment = json.loads((exports / "rankings").read_text().splitlines()[0])["judgment"]
        found = json.loads((await run("reach", "--judgment", judgment, "--json")).stdout)
        assert [one["id"] for one in found["lineage"]] == [snapshot, "rm", "po"]
        back = (await run("reach", "--model", "po")).stdout.splitlines()
        assert "made of 6 judgments of 2 people" in back
        found = json.loads((await run("reach", "--model", "po", "--json")).stdout)
        assert (len(found["judgments"]), judgment in found["judgments"]) == (6, True)
        assert (await run("reach", "--model", "absent")).exit_code == 1
        assert (await run("reach", "--person", "anna", "--user", "u")).exit_code == 2
        several = await run("reach", "--prompt", "question")
        assert (several.exit_code, "question 2" in several.stderr) == (1, True)
        assert (await run("reach", "--prompt", "question 2")).exit_code == 0

        stopped = await run("forget", "--person", "anna")
        assert (stopped.exit_code, len(http.service.store.erasures.all())) == (1, 0)
        assert {"feedback.db-wal", "backup.db"} <= holders(tmp_path, NOTE, TEXT)
        more = ["--files", str(exports), "--backup", str(backup), "--yes"]
        done = await run("forget", "--person", "anna", *more)
        assert done.exit_code == 1, done.output
        assert f"{exports / 'by_hand.txt'}: still holds 1 text; delete them yourself" in done.stdout
        assert f"{backup}: 4 entries erased, 8 entries verify" in done.stdout
        assert holders(tmp_path, NOTE, TEXT, "anna") == {"by_hand.txt"}
        kept = [json.loads(line) for line in (exports / "rankings").read_text().splitlines()]
        assert len(kept) == 3
        assert json.loads((exports / "label-studio").read_text()) == []
        marked = (await http.local.get("/artifacts?tainted=true"))["artifacts"]
        assert {snapshot, "rm", "po"} <= {one["id"] for one in marked}
        again = (await run("reach", "--model", "po")).stdout
        assert "learnt from something that was erased" in again
        assert "made of 6 judgments of 2 people, 3 of them erased" in again
        assert (await run("verify")).exit_code == 0
        new = await run("export", "--out", str(exports / "next"))
        assert new.stdout.strip() != snapshot
        assert len((exports / "next").read_text().splitlines()) == 3
        assert (await run("forget", "--person", "anna", "--yes")).exit_code == 1


def test_clean_removes_lines_by_id_and_changes_nothing_else(tmp_path: Path) -> None:
    one, other = "a" * 64, "b" * 64
    files = {
        "lines.jsonl": f'{{"judgment": "{one}"}}\n{{"judgment": "{other}"}}\n',
        "array.json": f'[{{"meta": "{one}"}}, {{"meta": "{other}"}}]',
        "object.json": f'{{\n "digest": "{one}"\n}}\n',
        "text.md": f"{one} says: sch\u00f6ne Gr\u00fc\u00dfe an alle\n",
        "escaped.json": '{"note": "sch\\u00f6ne Gr\\u00fc\\u00dfe an alle"}',
        "model.safetensors": "sch\u00f6ne Gr\u00fc\u00dfe an alle",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = clean([tmp_path], {one}, ["sch\u00f6ne Gr\u00fc\u00dfe an alle", "short"])
    assert [(each.path.name, each.removed, each.left) for each in found] == [
        ("array.json", 1, 0),
        ("escaped.json", 0, 1),
        ("lines.jsonl", 1, 0),
        ("text.md", 0, 1),
    ]
    assert json.loads((tmp_path / "array.json").read_text()) == [{"meta": other}]
    assert (tmp_path / "lines.jsonl").read_text() == f'{{"judgment": "{other}"}}\n'
    for name in ("object.json", "text.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == files[name]
    with pytest.raises(Exception, match="not there"):
        clean([tmp_path / "absent"], {one}, [])
