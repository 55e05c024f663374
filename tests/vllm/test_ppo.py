"""`fairlead ppo` with vLLM as the engine and real processes: policy and a rank are killed on the way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from benchmarks import tiny_run
from tests.integration.ppo_run import check, left_over, started
from tests.integration.rank_faults import ranks_of
from tests.tiny import tiny_causal_lm, tiny_reward_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7_200), pytest.mark.filterwarnings("ignore")]

UPDATES = 8
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


def make(folder: Path, **settings: object) -> Path:
    """Write models with heads that vLLM's CPU build supports, prompts and `run.toml`; return the file."""
    tiny_causal_lm(folder / "policy", seed=1, **SHAPE)
    tiny_reward_model(folder / "reward", seed=2)
    file = tiny_run.write(
        folder,
        name="tiny",
        prompts=(f"w{n} w{n * 7 % 56} w{n * 3 % 56}" for n in range(40)),
        settings={
            "ppo.updates": UPDATES,
            "ppo.learning_rate": 1e-3,
            "policy.engine": "vllm",
            "queue.lease_seconds": 5.0,
            "local.backoff_seconds": 0.2,
            # vLLM starts within half a minute, but on a busy machine it has taken more than ten.
            "local.ready_seconds": 1_800.0,
            **settings,
        },
    )
    with file.open("a") as text:
        text.write("[policy.vllm]\nkv_cache_memory_bytes = 67108864\nenforce_eager = true\n")
    return file


GROUPS = {"ppo.num_samples": 4, "ppo.batch_size": 32, "ppo.estimator": "rloo"}
"""Four answers per task, and no critic."""


@pytest.mark.parametrize(
    "settings",
    [
        {"ppo.max_staleness": 0, "ranks.per_node": 2},
        {"ppo.max_staleness": 1, "ranks.per_node": 1},
        {"ppo.max_staleness": 1, "ranks.per_node": 1, **GROUPS},
    ],
    ids=["two ranks", "asynchronous", "groups"],
)
def test_processes_are_killed_and_nothing_is_lost(tmp_path: Path, settings: dict[str, object]):
    ranks = settings["ranks.per_node"]
    with started(make(tmp_path, **settings)) as run:
        run.until(lambda: run.step() >= 3, seconds=2_000)
        (policy,) = [pid for name, pid in run.pids().items() if name.startswith("policy")]
        workers = psutil.Process(policy).children(recursive=True)
        os.kill(policy, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert alive == []  # vLLM's processes end with the service
        if ranks == 2:
            found = lambda: ranks_of(run.pids().get("trainer"))  # noqa: E731
            run.until(lambda: run.step() >= 5 and 1 in found(), seconds=2_000)
            found()[1].kill()
        code, output = run.finish(seconds=2_000)
        assert code == 0, output + run.log_tails()
        check(run.folder)
        assert left_over(run.folder) == []
    lines = [json.loads(line) for line in run.folder.metrics("ppo").read_text().splitlines()]
    updates = [line["update"] for line in lines]
    if ranks == 1:
        assert updates == list(range(1, UPDATES + 1))
    else:
        assert len(list(run.folder.checkpoints.glob(f"*-{UPDATES}/rank-00001.safetensors"))) == 1
    # Not measured in an update whose rollouts are all stale.
    mismatches = [line["mismatch_max"] for line in lines if "mismatch_max" in line]
    assert mismatches
    assert max(mismatches) <= 1e-4
    # π_prox is computed by the trainer for every rollout.
    assert all("behaviour_weight" in line for line in lines)
    assert max(abs(line["ratio_first"] - 1) for line in lines) < 1e-5
    print(f"\n{ranks} ranks: mismatch_max {max(mismatches):.1e} in {len(mismatches)} updates")  # noqa: T201
