"""Evaluation during training on scripted services: figures, outages, and the best checkpoint."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import grpc
import pytest
import torch
from safetensors.torch import load_file

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.config.rewards import CombinedSection, RewardTerm
from fairlead.config.training import PpoSection
from fairlead.data.encoding import encode_answer
from fairlead.data.records import load_prompts
from fairlead.errors import ConfigError, CorruptCheckpoint
from fairlead.nn.reward_model import load_reward_model
from fairlead.types import WeightVersion
from tests.scripted_services import Script, completion, serving
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.trainer.ppo.test_train import Run, configured
from trainer import seeds
from trainer.ppo.evaluate import BestUpdate, Evaluation, excess, objective


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


@contextmanager
def services(script: Script):
    """The scripted services on their own event loop in a thread."""
    loop, up, down = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(script):
            up.set()
            await down.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert up.wait(timeout=20)
        yield
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join()
        loop.close()


def evaluated(folder, model_path, address: str, **changes) -> RunConfig:
    names = ("policy", "reward", "reference")
    addresses = {f"{name}.addresses": [address] for name in names}
    settings = {"evaluation.every_updates": 1, "evaluation.num_prompts": 4, "data.heldout_fraction": 0.3}
    return configured(folder, model_path, **(addresses | settings | changes))


def after(evaluation: Evaluation, update: int) -> dict[str, float]:
    try:
        return evaluation.after(WeightVersion(9, update), on_phase=lambda name: None)
    finally:
        evaluation.close()


def test_figures_are_means_over_held_out_prompts(tmp_path, model_path):
    script = Script()
    script.generate = lambda request, _: answer_of_length(len(script.requests))
    with services(script):
        config = evaluated(tmp_path, model_path, script.address, **{"evaluation.temperature": 0.5})
        evaluation = Evaluation(config, tiny_tokenizer())
        phases: list[str] = []
        found = evaluation.after(WeightVersion(9, 3), on_phase=phases.append)  # closed by the next one
        first = list(script.requests)
        assert after(evaluation, 4)["eval_reward"] == 6.5  # lengths 5 to 8
    assert phases == ["evaluate"]
    # Lengths 1 to 4, rewarded by length; −0.5 a token under the policy, −temperature under the reference.
    assert found == pytest.approx(
        {"eval_reward": 2.5, "eval_length": 2.5, "eval_eos_rate": 1.0, "eval_kl": 0.0, "eval_objective": 2.5}
    )
    heldout = load_prompts(config).heldout
    encoded = [tuple(tiny_tokenizer()(prompt)["input_ids"]) for prompt in heldout]
    asked = {(tuple(request.tokens.token_ids), request.sampling.seed) for request in first}
    assert asked == {
        (encoded[number % len(encoded)], seeds.derive(config.seed, "evaluate", number)) for number in range(4)
    }
    assert {(request.min_version.incarnation, request.min_version.update) for request in first} == {(9, 3)}
    again = {(tuple(request.tokens.token_ids), request.sampling.seed) for request in script.requests[4:]}
    assert again == asked  # the same draws at every update


async def answer_of_length(length: int):
    return completion([5] * length)


def test_greedy_answers_are_requested_once_and_have_no_divergence(tmp_path, model_path):
    script = Script()
    with services(script):
        changes = {"evaluation.temperature": 0, "evaluation.num_prompts": 100}
        config = evaluated(tmp_path, model_path, script.address, **changes)
        found = after(Evaluation(config, tiny_tokenizer()), 1)
    heldout = load_prompts(config).heldout
    assert len(script.requests) == len(heldout)
    assert found["eval_reward"] == 3.0  # `<s>` and two words, answered backwards
    assert "eval_kl" not in found


def test_evaluation_waits_through_a_short_outage(tmp_path, model_path):
    script, refused = Script(), []

    async def first_unavailable(request, context):
        if len(refused) < 9:  # more often than a call itself retries
            refused.append(request)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return completion([5, 5])

    script.generate = first_unavailable
    with services(script):
        config = evaluated(tmp_path, model_path, script.address, **{"evaluation.num_prompts": 1})
        assert after(Evaluation(config, tiny_tokenizer()), 1)["eval_reward"] == 2.0
    assert len(refused) == 9


def test_unavailable_services_skip_the_evaluation(tmp_path, model_path, caplog):
    nobody, changes = "127.0.0.1:1", {"evaluation.max_seconds": 0.5, "ppo.updates": 2}
    with Run(evaluated(tmp_path, model_path, nobody, **changes), model_path) as run:
        result = run.trainer().run()
    assert result["updates"] == 2
    assert "best_update" not in result
    assert "update 1 is not evaluated" in caplog.text
    assert not run.config.folder.best_policy_model.exists()


def test_evaluation_requires_held_out_prompts(tmp_path, model_path):
    config = evaluated(tmp_path, model_path, "127.0.0.1:1", **{"data.heldout_fraction": 1e-9})
    with pytest.raises(ConfigError, match=r"evaluation\.every_updates"):
        Evaluation(config, tiny_tokenizer())


def test_held_out_prompts_without_space_for_an_answer_are_left_out_at_the_start(tmp_path, model_path, caplog):
    rows = [{"prompt": text} for text in ("w1 w2", "w1 " * 40, "w3 " * 39)]
    own = {"data.heldout_prompts": "own.jsonl", "evaluation.temperature": 0}
    script = Script()
    with services(script):
        config = evaluated(tmp_path, model_path, script.address, **own)
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        after(Evaluation(config, tiny_tokenizer(), context_tokens=41), 1)
    assert sorted(len(request.tokens.token_ids) for request in script.requests) == [3, 40]
    assert "data.heldout_prompts, held out: left out 1 of 3 prompts" in caplog.text
    with pytest.raises(
        ConfigError, match=r"^data\.heldout_prompts.*got '3 prompts, all of 3 tokens or more'"
    ):
        Evaluation(config, tiny_tokenizer(), context_tokens=3)


def test_best_update_is_remembered(tmp_path, model_path):
    evaluation = Evaluation(configured(tmp_path, model_path), tiny_tokenizer())
    assert not any(evaluation.is_due(update) for update in range(10))
    assert evaluation.state() == {"best": None}
    evaluation.best = BestUpdate(WeightVersion(2, 7), 0.1, 0.05)
    other = Evaluation(configured(tmp_path, model_path), tiny_tokenizer())
    other.load_state(json.loads(json.dumps(evaluation.state())))
    assert other.best == evaluation.best
    other.load_state({"best": {"version": "2-7", "reward": 0.1}})  # written by 0.1.0
    assert other.best == BestUpdate(WeightVersion(2, 7), 0.1, 0.1)
    with pytest.raises(CorruptCheckpoint):
        other.load_state({"best": {"version": "x", "reward": 1}})


def test_best_update_by_other_settings_is_forgotten(tmp_path, model_path, caplog):
    evaluation = Evaluation(configured(tmp_path, model_path), tiny_tokenizer())
    evaluation.best = BestUpdate(WeightVersion(2, 7), 0.1, 0.05)
    state = json.loads(json.dumps(evaluation.state()))
    for changes, message in (
        ({"ppo.updates": 99, "observe.log_level": "ERROR"}, ""),
        ({"ppo.kl_coefficient": 0.9}, "2-7, was chosen with another ppo.kl_coefficient and"),
        (
            {"reward.path": "another", "evaluation.num_prompts": 3},
            "another evaluation.num_prompts and reward.path and",
        ),
    ):
        caplog.clear()
        other = Evaluation(configured(tmp_path, model_path, **changes), tiny_tokenizer())
        other.load_state(state)
        assert (other.best is None) == bool(message)
        assert message in caplog.text


def test_best_update_by_the_score_only_is_warned_of(tmp_path, model_path, caplog):
    changes = {"evaluation.every_updates": 1, "data.heldout_fraction": 0.3}
    for more, warned in (
        ({}, False),
        ({"evaluation.temperature": 0}, True),
        ({"evaluation.temperature": 0, "ppo.kl_coefficient": 0}, False),  # no penalty is wanted
    ):
        caplog.clear()
        Evaluation(configured(tmp_path, model_path, **changes, **more), tiny_tokenizer())
        assert ("evaluation.temperature = 0 evaluations measure no KL" in caplog.text) == warned


def test_best_update_has_the_highest_objective_and_not_the_highest_score():
    section = PpoSection(kl_coefficient=0.1, missing_eos_penalty=0.5)
    hacked = {"eval_reward": 3.0, "eval_kl": 20.0, "eval_eos_rate": 0.6}
    honest = {"eval_reward": 2.5, "eval_kl": 4.0, "eval_eos_rate": 1.0}
    assert objective(hacked, section) == pytest.approx(3.0 - 0.1 * 20.0 - 0.5 * 0.4)
    assert objective(honest, section) == pytest.approx(2.1)
    assert objective(honest, section, score_unit=2.0) == pytest.approx(2.5 - 2.0 * 0.4)
    greedy = {name: value for name, value in hacked.items() if name != "eval_kl"}
    assert objective(greedy, section) == pytest.approx(2.8)


def test_evaluation_remembers_the_update_with_the_highest_objective(tmp_path, model_path):
    """Answers of update 2 score higher by 1, but are further from the reference by far more."""
    script = Script()
    script.generate = lambda request, _: answer_of_length({1: 3, 2: 4}[request.min_version.update])
    with services(script):
        changes = {"ppo.kl_coefficient": 0.5, "evaluation.temperature": 4.5}  # −0.5 and −4.5 a token
        evaluation = Evaluation(evaluated(tmp_path, model_path, script.address, **changes), tiny_tokenizer())
        versions = [WeightVersion(1, 1), WeightVersion(1, 2)]
        found = [evaluation.after(version, on_phase=lambda name: None) for version in versions]
        evaluation.close()
    assert [figures["eval_reward"] for figures in found] == [3.0, 4.0]
    assert [figures["eval_objective"] for figures in found] == [3.0 - 0.5 * 12, 4.0 - 0.5 * 16]
    assert evaluation.best == BestUpdate(versions[0], 3.0, -3.0)


def test_second_reward_model_chooses_the_best_update(tmp_path, model_path):
    """The proxy rewards length; the second model scores the texts, and chooses another update."""
    judge = str(tiny_reward_model(tmp_path / "judge", seed=3))
    tokenizer, model = tiny_tokenizer(), load_reward_model(judge, ComputeSection(device="cpu"))

    def judged(config: RunConfig, length: int) -> float:
        heldout = load_prompts(config).heldout
        scores = []
        for number in range(4):
            prompt, answer = encode_answer(
                tokenizer, heldout[number % len(heldout)], " ".join(["5"] * length)
            )
            with torch.no_grad():
                found = model.scores(torch.tensor([[*prompt, *answer]]), torch.tensor([len(prompt + answer)]))
            scores.append(float(found))
        return sum(scores) / len(scores)

    script, lengths = Script(), {1: 3, 2: 1, 3: 6, 4: 9}
    script.generate = lambda request, _: answer_of_length(lengths[request.min_version.update])
    with services(script):
        changes = {"evaluation.reward_model": judge, "ppo.kl_coefficient": 0.0}
        config = evaluated(tmp_path, model_path, script.address, **changes)
        evaluation = Evaluation(config, tokenizer)
        versions = {update: WeightVersion(1, update) for update in lengths}
        found = {
            update: evaluation.after(version, on_phase=lambda name: None, is_contradicted=update == 4)
            for update, version in versions.items()
        }
        evaluation.close()
    expected = {update: judged(config, length) for update, length in lengths.items()}
    for update, figures in found.items():
        assert figures["eval_heldout_reward"] == pytest.approx(expected[update], abs=1e-5)
        assert figures["eval_objective"] == figures["eval_heldout_reward"]
        assert figures["eval_reward"] == lengths[update]
    best = max((1, 2, 3), key=lambda update: expected[update])
    assert evaluation.best.version == versions[best]
    assert evaluation.best.heldout_reward == found[best]["eval_heldout_reward"]

    resumed = Evaluation(config, tokenizer)
    resumed.load_state(json.loads(json.dumps(evaluation.state())))
    assert resumed.best == evaluation.best
    without = Evaluation(evaluated(tmp_path, model_path, script.address), tokenizer)
    without.load_state(evaluation.state())
    assert without.best is None


def test_answers_above_the_limit_of_an_adapted_constraint_are_not_the_best():
    terms = {"good": RewardTerm(path="a"), "cost": RewardTerm(path="b")}
    combined = CombinedSection(
        terms=terms, rule="constraint", constrained="cost", limit=0.5, multiplier_step=0.1
    )
    message = "its mean of the term cost, 0.75, is above the limit 0.5"
    assert excess({"eval_term_cost": 0.75}, combined) == message
    assert excess({"eval_term_cost": 0.5}, combined) == ""
    assert excess({"eval_term_cost": 0.75}, CombinedSection(terms=terms)) == ""


@pytest.mark.parametrize("killed_at", [None, 3])
def test_best_checkpoint_is_kept_and_becomes_policy_best(tmp_path, model_path, killed_at):
    """The scripted policy answers best with the weights of update 3, at which no checkpoint is due."""
    script, lengths = Script(), {1: 2, 2: 1, 3: 7, 4: 3, 5: 4, 6: 6}
    script.generate = lambda request, _: answer_of_length(lengths[request.min_version.update])
    with services(script):
        changes = {"checkpoint.every_updates": 2, "checkpoint.keep": 1}
        config = evaluated(tmp_path, model_path, script.address, **changes)
        with Run(config, model_path, score=lambda answer: float(sum(answer) % 5)) as run:
            if killed_at:
                run.killed_after(killed_at)
            result = run.trainer().run()
    folder = run.config.folder
    lines = [json.loads(line) for line in folder.metrics("ppo").read_text().splitlines()]
    assert [line["eval_reward"] for line in lines] == [2, 1, 7, 3, 4, 6]
    assert (result["best_update"], result["best_eval_reward"]) == (3, 7.0)
    # The best update is checkpointed at once, so the killed run continues after update 3.
    kept = sorted(path.name for path in folder.checkpoints.glob("?-?"))
    assert "1-3" in kept
    assert not {"1-1", "1-2"} & set(kept)
    best = load_file(folder.best_policy_model / "model.safetensors")
    expected = load_file(folder.checkpoints / "1-3" / "policy.safetensors")
    final = load_file(folder.policy_model / "model.safetensors")
    assert all(torch.equal(best[name], expected[name]) for name in expected)
    assert any(not torch.equal(best[name], final[name]) for name in expected)
    assert (folder.best_policy_model / "tokenizer.json").exists()
    assert {"evaluate"} <= {json.loads(line)["phase"] for line in folder.phases.read_text().splitlines()}
