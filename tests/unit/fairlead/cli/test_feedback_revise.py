"""`fairlead feedback judge --revise`: critiques and revisions of a scripted model over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairlead.cli.main import app
from fairlead.cli.revising import text_of
from fairlead.config import load
from fairlead.data.records import is_heldout, load_demonstrations
from tests.chat_endpoint import chat_endpoint
from tests.feedback_service import feedback, task

PRINCIPLES = ("Be kind.", "Be brief.")


def scripted(message: str) -> str:
    """Criticise unless the answer is about a perfect question, and revise by adding a word."""
    if "[Answer A]" in message:
        return "B"
    if "[Critique]" in message:
        original = message.split("[Answer]\n")[1].split("\n\n[Critique]", maxsplit=1)[0]
        return f"Here it is.\n<answer>\n{original}, kindly\n</answer>"
    if "[Answer]" in message:
        return "**NOTHING**." if "question 7" in message else "It is curt."
    return "no tags at all" if "question 8" in message else "<answer>a first answer</answer>"


async def test_judge_writes_demonstrations_by_a_constitution(tmp_path: Path) -> None:
    rubric, constitution = tmp_path / "rubric.md", tmp_path / "principles.txt"
    rubric.write_text("Prefer the kinder answer.\n")
    constitution.write_text("# Ours\n" + "".join(f"- {one}\n" for one in PRINCIPLES))
    read: list[str] = []

    def answer(request: dict) -> tuple[int, object]:
        read.append(request["messages"][0]["content"])
        return 200, {"choices": [{"message": {"content": scripted(read[-1])}}]}

    settings = {"project__kinds": ["rank", "write", "edit"], "project__judges": "train"}
    async with feedback(tmp_path, **settings) as http:
        added = [task(0, k=0, kind="write"), task(1, k=1, kind="edit"), task(2, k=2, kind="edit")]
        added += [task(7, k=1, kind="edit"), task(7, k=0, kind="write"), task(8, k=0, kind="write")]
        await http.local.post("/tasks", {"tasks": added})
        with chat_endpoint(answer) as url:

            async def run(*more: str) -> Result:
                command = ["feedback", "judge", str(rubric), "--address", http.address, "--handle", "judge"]
                command += ["--endpoint", url, "--model", "scripted-1", *more]
                return await asyncio.to_thread(CliRunner().invoke, app, command)

            assert (await run("--revise")).exit_code == 2
            done = await run("--revise", "--constitution", str(constitution))
        assert done.stdout.startswith("4 revised, 2 skipped"), done.output
        entries = http.service.store.log.entries()
        bodies = [dict(one.body or {}) for one in entries if one.kind == "writing"]
        texts = [body["text"] for body in bodies]
        assert texts[:2] == ["a first answer, kindly", "answer 1 0, kindly"]
        # A model that always prefers the second contradicts itself: a tie, and the first shown is revised.
        assert texts[2] in ("answer 2 0, kindly", "answer 2 1, kindly")
        assert texts[3] == "a first answer"
        digest = hashlib.sha256("\n".join(PRINCIPLES).encode()).hexdigest()
        for body in bodies:
            details = body["details"]
            assert details["constitution_sha256"] == digest
            assert details["principle"]["text"] in PRINCIPLES
            assert details["model"].startswith("scripted-1 at http://127.0.0.1")
            assert details["critique"] in ("It is curt.", "**NOTHING**.")
            assert details["answer"] in (body["text"], body["text"].removesuffix(", kindly"))
        assert any(f"Principle: {one}" in message for message in read for one in PRINCIPLES)

        # Apart from people, and in no held-out set.
        wanted = {"kinds": ["write", "edit"]}
        assert (await http.local.ask("POST", "/snapshots", wanted)).status == 400
        snapshot = await http.local.post("/snapshots", wanted | {"people": ["judge"]})
        file = await http.local.ask("GET", f"/snapshots/{snapshot['digest']}.demonstrations")
    (tmp_path / "judges.jsonl").write_bytes(file.body)
    lines = [json.loads(line) for line in file.body.splitlines()]
    assert {line["kind"] for line in lines} == {"judge"}
    values = {"data.demonstrations": str(tmp_path / "judges.jsonl"), "data.heldout_fraction": 0.5}
    seeds = (load(overrides=values | {"seed": seed}) for seed in range(100))
    config = next(
        one for one in seeds if 0 < sum(is_heldout(one, line["prompt"]) for line in lines) < len(lines)
    )
    split = load_demonstrations(config)
    assert split.heldout == ()
    assert len(split.train) == sum(not is_heldout(config, line["prompt"]) for line in lines)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<answer> yes </answer>", "yes"),
        ("no", None),
        ("<answer></answer>", None),
        ("<answer>a</answer><answer>b</answer>", None),
    ],
)
def test_text_of_takes_exactly_one_answer(reply: str, text: str | None) -> None:
    assert text_of(reply) == text
