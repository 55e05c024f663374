"""`fairlead feedback`: from a file of answers to a file of rankings, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner, Result

from fairlead.cli.main import app
from tests.feedback_service import feedback, ranks_by_text, task


async def test_verbs_add_tasks_invite_people_and_export(tmp_path: Path) -> None:
    answers, out, fresh = (tmp_path / name for name in ("answers.jsonl", "rankings.jsonl", "fresh.jsonl"))
    lines = [task(number) | {"unknown": "left out"} for number in range(3)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    async with feedback(tmp_path) as http:

        async def run(*arguments: str) -> Result:
            # The variable must not be one that a section of the configuration reads.
            given = {"FAIRLEAD_FEEDBACK_ADDRESS": http.address}
            return await asyncio.to_thread(CliRunner().invoke, app, ["feedback", *arguments], env=given)

        for new, known in ((3, 0), (0, 3)):
            added = await run("tasks", str(answers))
            assert added.stdout == f"{new} new tasks, {known} known before\n", added.output
        invited = await run("invite", "anna", "--cohort", "train")
        again = await run("invite", "anna")
        assert invited.stdout.startswith(f"http://{http.address}/invitation?token=")
        assert invited.stdout != again.stdout
        other = await run("invite", "anna", "--role", "lead")
        assert (other.exit_code, "anna is there already with labeler" in other.stderr) == (2, True)
        anna = await http.signed_in(invitation=again.stdout.strip().rpartition("=")[2])

        # A task is named by its line, also beyond the first request; known ones stay as they are.
        many = [json.dumps(task(number)) for number in range(3)] * 70
        wrong = tmp_path / "wrong.jsonl"
        wrong.write_text("\n".join([*many, '{"prompt": "only", "responses": ["one"]}']))
        refused = await run("tasks", str(wrong))
        assert f"{wrong}:211: responses: got '1 answers', allowed: 2 to 9 for rank; " in refused.stderr
        assert "the tasks before line 201 were added" in refused.stderr
        kept = await run("tasks", str(answers), "--overlap", "2")
        assert "keep their overlap" in kept.stderr

        folder = await run("export", "--out", str(tmp_path))
        assert (folder.exit_code, "a folder, allowed: a file" in folder.stderr) == (2, True)
        nothing = await run("export", "--out", str(out))
        assert (nothing.exit_code, "allowed: one that a judgment matches" in nothing.stderr) == (2, True)
        for number in range(3):
            shown = await anna.next()
            await anna.post(f"/assignments/{shown['assignment']}/judgment", {"ranks": ranks_by_text(shown)})
            if number == 0:
                assert (await run("follow", "--out", str(fresh), "--once")).exit_code == 0
                with fresh.open("a") as file:
                    file.write('{"torn')
        assert (await run("follow", "--out", str(fresh), "--once")).exit_code == 0
        followed = [json.loads(line) for line in fresh.read_text().splitlines()]
        assert [line["seq"] for line in followed] == [1, 2, 3]

        exported = await run("export", "--out", str(out))
        written = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["judgment"] for line in written] == [line["judgment"] for line in followed]
        assert len(exported.stdout.strip()) == 64
        assert "judgments  3 done, 0 late, 0 wanted" in (await run("status")).stdout
        assert json.loads((await run("status", "--json")).stdout)["tasks"] == {"closed": 3}
        assert json.loads((await run("figures", "labelers")).stdout)["labelers"][0]["handle"] == "anna"
        assert (await run("verify")).stdout.startswith("3 entries, 0 erased, 1 snapshots: in order\n")
        absent = await run("status", "--project", "absent")
        assert (absent.exit_code, "no project 'absent'" in absent.stderr) == (1, True)
