"""From a chat completion to a task: gateway, policy, feedback service and the verb `sample`, over real
sockets; and a feedback service that is not there.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from fairlead import metrics
from fairlead.cli.feedback_sample import uncertainty
from fairlead.cli.main import app
from fairlead.config import load
from fairlead.errors import ConfigError
from services.gateway.collection import collector_of
from tests.feedback_service import Feedback, feedback
from tests.gateway_world import Gateway, gateway, policy_server, reward_server
from tests.tiny import tiny_reward_model
from tests.waiting import until

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
PRIVATE = "anna@example.org"


def body(number: int, **fields: object) -> dict[str, object]:
    words = random.Random(number).sample(range(50), 12)
    text = f"{' '.join(f'w{word}' for word in words)} {PRIVATE}"
    return {"messages": [{"role": "user", "content": text}], "max_completion_tokens": 3} | fields


def sample(http: Gateway, name: str, **labels: str) -> float:
    return http.registry.get_sample_value(f"fairlead_gateway_exchanges_{name}", labels) or 0.0


async def chat(http: Gateway, *bodies: dict[str, object]) -> list[int]:
    return [(await http.post("/v1/chat/completions", one)).status for one in bodies]


def held(folder: Path, text: str) -> list[str]:
    return [one.name for one in folder.rglob("*") if one.is_file() and text.encode() in one.read_bytes()]


async def test_prompts_whose_users_ask_for_it_become_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    async with policy_server(tmp_path / "policy", chat_template=TEMPLATE) as policy:
        async with feedback(folder) as people:
            sections = {"feedback.addresses": [people.address]}
            async with gateway(policy=policy.address, sections=sections) as off:
                assert await chat(off, body(0, store=True, user="user-17")) == [200]
            async with gateway(policy=policy.address, sections=sections, collect="asked") as http:
                refused = (
                    ({"metadata": {"a": 1}}, "metadata.a"),
                    ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata"),
                    ({"metadata": {"k" * 65: "v"}}, None),
                    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
                    ({"metadata": ["a"]}, "metadata"),
                    ({"user": "u" * 1_025}, "user"),
                    ({"store": "yes"}, "store"),
                )
                for fields, param in refused:
                    answer = await http.post("/v1/chat/completions", body(1, **{"store": True} | fields))
                    assert answer.status == 400, fields
                    assert param is None or answer.error["param"] == param
                named = {"user": "user-17", "metadata": {"page": f"by {PRIVATE}"}}
                silent = (body(1), body(2, store=False), body(3, store=None, **named))
                assert await chat(http, *silent) == [200] * 3
                wanted = [body(n, store=True, stream=n % 2 == 0, **named) for n in range(4, 10)]
                assert await chat(http, *wanted) == [200] * 6
                await until(lambda: sample(http, "sent_total") == 6)
            async with gateway(
                policy=policy.address, sections=sections, collect="notice", collect_notice="v2"
            ) as http:
                assert await chat(http, body(20), body(21, store=False)) == [200] * 2
                await until(lambda: sample(http, "sent_total") == 1)
            model = tiny_reward_model(tmp_path / "reward")
            (model / "chat_template.jinja").write_text(TEMPLATE)
            async with reward_server(model) as reward:
                await screened_and_sampled(people, policy.address, reward, folder)


async def screened_and_sampled(people: Feedback, policy: str, reward: str, folder: Path) -> None:
    waiting = (await people.local.get("/prompts"))["prompts"]
    assert sorted(one["consent"] for one in waiting) == ["asked"] * 6 + ["notice:v2"]
    assert all(one["prompt"][0]["content"].endswith(" [EMAIL]") for one in waiting)
    assert waiting[0]["masked"] == {"EMAIL": 2}
    for text in (PRIVATE, "user-17"):
        assert held(folder, text) == []
    for one in waiting[1:]:
        await people.local.ask("PATCH", f"/prompts/{one['id']}", {"state": "screened"})
    reject = {"state": "rejected", "reason": "harmful"}
    assert (await people.local.ask("PATCH", f"/prompts/{waiting[0]['id']}", reject)).status == 200
    command = ["feedback", "sample", "--address", people.address, "--policy", policy, "--k", "3"]
    command += ["--max-new-tokens", "4", "--count", "3", "--round", "2"]
    for extra in ("--random-share=0.8", "--reward=127.0.0.1:1"):
        wrong = await asyncio.to_thread(CliRunner().invoke, app, [*command, extra])
        assert wrong.exit_code == 2, wrong.output
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    tasks = (await people.local.get("/tasks"))["tasks"]
    assert [(one["why"], one["round"], one["answers"]) for one in tasks] == [("random", 2, 3)] * 3
    whole = await people.local.get(f"/tasks/{tasks[0]['id']}")
    assert whole["responses"][0]["weight_version"] == "0-0"
    command += ["--random-share", "0.5", "--reward", reward, "--count", "2"]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 0, done.output
    tasks = (await people.local.get("/tasks"))["tasks"]
    assert [one["why"] for one in tasks[3:]] == ["random", "uncertain"]
    assert (await people.local.get("/collected"))["all"] == 1


def test_uncertainty_is_greatest_for_equal_scores() -> None:
    assert uncertainty([1.0, 1.0, 1.0], 0.0) == 1
    p = 1 / (1 + math.exp(-2 / 4))
    assert uncertainty([3.0, 1.0], 4.0) == pytest.approx(4 * p * (1 - p))
    assert uncertainty([0.0, 0.0, 1_000.0], 0.0) == pytest.approx(1 / 3)


async def test_callers_do_not_wait_for_a_feedback_service_that_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepts connections and never answers
        sections = {"feedback.addresses": [f"127.0.0.1:{hanging.getsockname()[1]}"]}
        async with policy_server(tmp_path / "policy", chat_template=TEMPLATE) as policy:
            async with gateway(
                policy=policy.address, sections=sections, collect="asked", collect_queue=3
            ) as http:
                assert await chat(http, *(body(n, store=True) for n in range(8))) == [200] * 8
                assert sample(http, "waiting") == 3
                assert sample(http, "dropped_total", reason="queue_full") == 5
            # What is left is counted, and the gateway ends.
            assert sample(http, "dropped_total", reason="stopped") == 3
            assert sample(http, "waiting") == 0


def test_a_gateway_that_collects_needs_a_feedback_service_and_a_notice() -> None:
    with pytest.raises(ConfigError, match="collect_notice"):
        load(overrides={"gateway.collect": "notice"})
    with pytest.raises(ConfigError, match="has no effect"):
        load(overrides={"gateway.collect_notice": "v1"})
    config = load(overrides={"gateway.collect": "asked"})
    with pytest.raises(ConfigError, match="feedback.addresses"):
        collector_of(config, metrics.CollectMetrics(CollectorRegistry()))
    assert collector_of(load(), metrics.CollectMetrics(CollectorRegistry())) is None
