"""The whole trainer on the memory queue: it learns, resumes bit for bit, and counts every task once."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file

from fairlead.audit import audit
from fairlead.config import RunConfig, load
from fairlead.errors import ConfigError, Fenced
from fairlead.metrics import TrainerMetrics
from fairlead.nn.loading import load_causal_lm
from tests.memory_queue import MemoryBroker
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_world import World
from trainer.checkpoint import CheckpointStore
from trainer.ppo.task_records import read_journal
from trainer.ppo.train import PpoTrainer

SMALL = {
    "ppo.updates": 6,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 4,
    "ppo.epochs": 2,
    "ppo.learning_rate": 3e-3,
    "ppo.critic_learning_rate": 3e-3,
    "ppo.kl_coefficient": 0.02,
    "ppo.ema_decay": 0.5,
    "ppo.device": "cpu",
    "sampling.max_new_tokens": 4,
    "checkpoint.every_updates": 2,
    "queue.stall_seconds": 0.2,
    "queue.give_up_seconds": 20,
    "observe.tensorboard": False,
}


class Killed(BaseException):
    """Raised in place of a process that ends between two updates."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("model"))


def configured(folder, model_path, **changes) -> RunConfig:
    folder.mkdir(exist_ok=True)
    prompts = "".join(json.dumps({"prompt": f"w{n} w{n + 1}"}) + "\n" for n in range(20))
    (folder / "prompts.jsonl").write_text(prompts)
    paths = {"runs": str(folder), "base": str(folder), "data.prompts": "prompts.jsonl"}
    return load(overrides=paths | {"policy.path": str(model_path)} | SMALL | changes)


def count_of_sevens(answer: tuple[int, ...]) -> float:
    return float(sum(token == 7 for token in answer))


class Run:
    """A world, and any number of trainers in it."""

    def __init__(self, config: RunConfig, model_path, score=count_of_sevens):
        self.config = config
        self.world = World(model_path, config.weights_path, score)
        self.broker: MemoryBroker = self.world.broker
        self.models = None

    def __enter__(self):
        self.world.__enter__()
        return self

    def __exit__(self, *error):
        self.world.__exit__(*error)

    def trainer(self, metrics=None) -> PpoTrainer:
        found = PpoTrainer(self.config, queue=self.broker.trainer(), store=self.world.store, metrics=metrics)
        self.models = found.models
        return found

    def killed_after(self, update: int) -> None:
        def kill(done: int) -> None:
            if done == update:
                raise Killed

        with suppress(Killed):
            self.trainer().run(on_update=kill)


def audited(config: RunConfig) -> dict[str, int]:
    """Return what an audit of the folder counts; every rule must hold in any case."""
    report, _ = audit(config.folder)
    assert report.is_clean, report.findings
    assert (report.ended, report.tasks, report.open) == (True, 48, 0)
    return {"trained": report.trained, "dead": report.dead, "void": report.void}


def weights(models) -> dict[str, torch.Tensor]:
    state = models.state()
    return {f"{part}.{name}": value for part, group in state.items() for name, value in group.items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_path):
    """An undisturbed run: its result and its final weights."""
    config = configured(tmp_path_factory.mktemp("undisturbed"), model_path)
    with Run(config, model_path) as run:
        result = run.trainer().run()
        return config, result, weights(run.models)


def test_run_resumed_with_other_batch_sizes_passes_its_audit(tmp_path, model_path):
    for size, stop in ((8, 3), (4, 5), (16, 0)):
        sizes = {"ppo.batch_size": size, "ppo.mini_batch_size": 4}
        config = configured(tmp_path, model_path, **sizes)
        with Run(config, model_path) as run:
            run.killed_after(stop) if stop else run.trainer().run()
        report, _ = audit(config.folder)
        assert report.is_clean, report.findings
    # Updates 0 and 1 with 8 tasks (a checkpoint every second update), 2 and 3 with 4, 4 and 5 with 16.
    assert (report.ended, report.trained) == (True, 2 * 8 + 2 * 4 + 2 * 16)


def test_run_writes_all_its_files(undisturbed):
    config, result, _ = undisturbed
    assert json.loads(config.folder.result("ppo").read_text()) == json.loads(json.dumps(result))
    assert (result["updates"], result["episodes"], result["incarnations"]) == (6, 48, 1)
    assert (result["tasks_dispatched"], result["tasks_trained"]) == (48, 48)
    assert (result["tasks_duplicated"], result["tasks_lost"], result["dead_letters"]) == (0, 0, 0)
    assert result["mismatch_max"] < 1e-5
    lines = [json.loads(line) for line in config.folder.metrics("ppo").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["ratio_first"] == pytest.approx(1.0, abs=1e-5)
        assert line["seconds"] >= line["seconds_train"] > 0
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    phases = [json.loads(line) for line in config.folder.phases.read_text().splitlines()]
    assert {"wait", "prepare", "train", "publish", "checkpoint"} <= {line["phase"] for line in phases}
    progress = json.loads(config.folder.progress.read_text())
    assert (progress["phase"], progress["step"], progress["total"]) == ("done", 6, 6)
    load_causal_lm(str(config.folder.policy_model), config.ppo)
    averaged = load_causal_lm(str(config.folder.average_policy_model), config.ppo).state_dict()
    kept = load_file(config.folder.checkpoints / "1-6" / "policy_ema.safetensors")
    assert all(torch.equal(averaged[name], value) for name, value in kept.items())
    assert not list(config.folder.root.rglob("*.pt"))


def test_every_prompt_is_used_once_per_epoch(undisturbed):
    config, _, _ = undisturbed
    tasks = [line["task"] for line in read_journal(config.folder.ledger)]
    assert sorted(tasks) == list(range(48))


@pytest.mark.parametrize("update", [1, 3, 4, 5])
def test_killed_run_ends_with_the_same_weights_bit_for_bit(update, tmp_path, model_path, undisturbed):
    _, expected, expected_weights = undisturbed
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.killed_after(update)
        result = run.trainer().run()
    assert same(weights(run.models), expected_weights)
    # Tasks are counted in the lineage of the final weights: updates done twice do not appear.
    differing = {"seconds", "incarnations", "mismatch_max", "tokens"}
    assert {k: v for k, v in result.items() if k not in differing} == {
        k: v for k, v in expected.items() if k not in differing
    }
    assert result["incarnations"] == 2
    steps = [json.loads(line)["step"] for line in run.config.folder.metrics("ppo").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert audited(run.config) == {"trained": 48, "dead": 0, "void": 8 * (update % 2)}


ONLINE_DPO = {
    "ppo.estimator": "pairs",
    "ppo.loss": "online_dpo",
    "ppo.num_samples": 2,
    "ppo.kl_control": "linear",
    "ppo.kl_coefficient_end": 0.01,
}


@pytest.mark.parametrize("recipe", [{"ppo.estimator": "reinforce++"}, ONLINE_DPO], ids=["one", "pairs"])
def test_run_without_a_critic_keeps_only_the_policy_and_resumes_bit_for_bit(tmp_path, model_path, recipe):
    found = []
    for name, update in (("whole", None), ("killed", 3)):
        config = configured(tmp_path / name, model_path, **recipe)
        with Run(config, model_path) as run:
            if update is not None:
                run.killed_after(update)
            run.trainer().run()
            found.append(weights(run.models))
        newest = CheckpointStore(config.folder.checkpoints).versions()[-1]
        assert sorted(path.name for path in (config.folder.checkpoints / str(newest)).iterdir()) == [
            "manifest.json",
            "policy.safetensors",
            "policy_ema.safetensors",
            "policy_optimizer.safetensors",
            "state.json",
        ]
        report, _ = audit(config.folder)
        assert report.is_clean, report.findings
        assert report.trained == 48 // config.ppo.num_samples
        lines = curves(config)
        assert [line["kl_coefficient"] for line in lines] == pytest.approx(
            [0.02 - 0.01 * update / 5 if recipe is ONLINE_DPO else 0.02 for update in range(6)]
        )
        if recipe is ONLINE_DPO:
            assert all(0.0 <= line["groups_without_signal"] <= 1.0 for line in lines)
            assert all({"accuracy", "margin"} <= line.keys() for line in lines if "policy_loss" in line)
    assert same(*found)


def test_run_killed_twice_with_the_queue_wiped_in_between(tmp_path, model_path, undisturbed):
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.killed_after(3)
        run.killed_after(4)
        with run.broker.changed:
            run.broker.prompts.clear()
            run.broker.leases.clear()
            run.broker.open.clear()
            run.broker.outcomes.clear()
            run.broker.incarnation = 0
        result = run.trainer().run()
    assert same(weights(run.models), undisturbed[2])
    assert result["incarnations"] == 3
    assert audited(run.config) == {"trained": 48, "dead": 0, "void": 8}
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)


def test_damaged_checkpoint_costs_only_time(tmp_path, model_path, undisturbed, caplog):
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.killed_after(5)
        newest = run.config.folder.checkpoints / "1-4" / "policy.safetensors"
        newest.write_bytes(newest.read_bytes()[:-8])
        result = run.trainer().run()
    assert "checkpoint 1-4 is damaged" in caplog.text
    assert same(weights(run.models), undisturbed[2])
    assert audited(run.config) == {"trained": 48, "dead": 0, "void": 24}
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)


def test_finished_run_started_again_returns_the_same_result(tmp_path, model_path, undisturbed):
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.trainer().run()
        result = run.trainer().run()
    assert same(weights(run.models), undisturbed[2])
    assert (result["tasks_trained"], result["tasks_lost"], result["incarnations"]) == (48, 0, 2)


def test_forced_run_deletes_checkpoints_and_repeats_the_result(tmp_path, model_path, undisturbed):
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.trainer().run()
        CheckpointStore(run.config.folder.checkpoints).forget()
        result = run.trainer().run()
    assert same(weights(run.models), undisturbed[2])
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)
    assert len(list(read_journal(run.config.folder.ledger))) == 96
    assert audited(run.config) == {"trained": 48, "dead": 0, "void": 48}


def test_dead_tasks_are_left_out_and_counted(tmp_path, model_path):
    registry = CollectorRegistry()
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.world.dead = {3, *range(8, 16)}  # one of the first batch, all of the second
        result = run.trainer(TrainerMetrics(registry)).run()
    assert (result["tasks_dispatched"], result["tasks_trained"], result["dead_letters"]) == (48, 39, 9)
    assert (result["tasks_lost"], result["tasks_duplicated"]) == (0, 0)
    assert audited(run.config) == {"trained": 39, "dead": 9, "void": 0}
    tasks = {"event": "dead_letter"}
    assert registry.get_sample_value("fairlead_trainer_tasks_total", tasks) == 9
    assert registry.get_sample_value("fairlead_trainer_phase", {"phase": "done"}) == 1
    assert registry.get_sample_value("fairlead_trainer_update") == 6


def test_prompts_without_space_for_an_answer_are_left_out_before_anything_is_sent(
    tmp_path, model_path, caplog
):
    """The limit is that of the policy service, which would refuse them one after the other."""
    one = {"data.heldout_fraction": 1e-9, "ppo.updates": 1}
    with Run(configured(tmp_path, model_path, **one), model_path) as run:
        lines = ["w1", "w2", *(f"w{n} " * 40 for n in range(4))]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": x}) + "\n" for x in lines))
        run.config = run.config.model_copy(
            update={"policy": run.config.policy.model_copy(update={"max_sequence_tokens": 32})}
        )
        result = run.trainer().run()
        assert "data.prompts: left out 4 of 6 prompts" in caplog.text
        assert (result["dead_letters"], result["tasks_trained"]) == (0, 8)
        (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": lines[-1]}))
        with pytest.raises(ConfigError, match=r"^data\.prompts: got '1 prompts, all of 32 tokens or more'"):
            run.trainer()


@pytest.mark.parametrize("paused_after", [3, 6])
def test_overtaken_trainer_stops_and_changes_nothing(tmp_path, model_path, undisturbed, paused_after):
    """The first trainer is paused after an update, a second runs to the end, then the first continues."""
    with Run(configured(tmp_path, model_path), model_path) as run:
        second = []

        def overtake(done: int) -> None:
            if done == paused_after:
                second.append(run.trainer())
                second[0].run()

        first = run.trainer()
        with pytest.raises(Fenced):
            first.run(on_update=overtake)
    assert same(weights(second[0].models), undisturbed[2])
    result = json.loads(run.config.folder.result("ppo").read_text())
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)
    assert run.world.store.latest().version.incarnation == 2
    assert audited(run.config)["trained"] == 48


def test_trainer_learns_a_small_bandit(tmp_path, model_path):
    """Answers of one token, reward 1 for one of sixty: the optimum has nearly all of its mass on it."""
    config = configured(
        tmp_path,
        model_path,
        **{
            "ppo.updates": 25,
            "ppo.batch_size": 32,
            "ppo.mini_batch_size": 16,
            "ppo.epochs": 2,
            "ppo.learning_rate": 5e-3,
            "ppo.critic_learning_rate": 5e-3,
            "ppo.kl_coefficient": 0.01,
            "sampling.max_new_tokens": 1,
            "checkpoint.every_updates": 100,
        },
    )
    with Run(config, model_path, score=lambda answer: float(7 <= answer[0] <= 12)) as run:
        result = run.trainer().run()
    assert result["proxy_first"] < 0.35
    assert result["proxy_last"] > 0.85
    assert result["kl"] > 0.5


WHOLE_RECIPE = {
    "ppo.kl_control": "adaptive",
    "ppo.kl_target": 0.3,
    "ppo.kl_horizon": 20,
    "ppo.normalise_scores": True,
    "ppo.ptx_coefficient": 0.2,
    "ppo.ptx_batch_size": 3,
    "data.demonstrations": "demonstrations.jsonl",
}
TIMES = ("time", "incarnation", "seconds", "tokens_per_second", "idle_fraction", "queue_")


def with_the_whole_recipe(folder, model_path) -> RunConfig:
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"w{n}", "completion": f"w{n + 1} w{n + 2}"} for n in range(11)]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return configured(folder, model_path, **WHOLE_RECIPE)


def curves(config: RunConfig) -> list[dict[str, float]]:
    """Every figure of every update except those that depend on the clock."""
    lines = [json.loads(line) for line in config.folder.metrics("ppo").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines]


def test_metrics_after_a_kill_equal_those_of_an_undisturbed_run(tmp_path, model_path):
    """Killed between two checkpoints and resumed: weights, β and metrics are bit for bit equal."""
    whole, cut = (with_the_whole_recipe(tmp_path / name, model_path) for name in ("whole", "cut"))
    with Run(whole, model_path) as undisturbed_run:
        undisturbed_run.trainer().run()
    with Run(cut, model_path) as run:
        run.killed_after(3)
        run.trainer().run()
    assert same(weights(run.models), weights(undisturbed_run.models))
    expected, found = curves(whole), curves(cut)
    assert found == expected
    betas = [line["kl_coefficient"] for line in found]
    assert betas[0] == 0.02
    assert len(set(betas)) == 6  # it adapted at every update, before the kill and after it
    assert [line["lr"] for line in found] == pytest.approx([3e-3 * (1 - update / 6) for update in range(6)])
    states = [
        json.loads((config.folder.checkpoints / version / "state.json").read_text())
        for config, version in ((whole, "1-6"), (cut, "2-6"))
    ]
    for name in ("kl_coefficient", "score_scale", "ptx_cursor"):
        assert states[0][name] == states[1][name]
    assert states[0]["ptx_cursor"] == 6 * 2 * 2 * 3  # updates · epochs · steps · demonstrations
    assert states[0]["score_scale"]["count"] == 48


def test_fixed_beta_comes_from_the_configuration_after_a_resume(tmp_path, model_path):
    with Run(configured(tmp_path, model_path), model_path) as run:
        run.killed_after(3)
        run.config = configured(tmp_path, model_path, **{"ppo.kl_coefficient": 0.5})
        run.trainer().run()
    assert [line["kl_coefficient"] for line in curves(run.config)] == [0.02, 0.02, 0.5, 0.5, 0.5, 0.5]
