"""Compare the memory of the ranks of every stage with `fairlead plan`.

A model of the size of SmolLM2-135M, on the CPU with 2 ranks over gloo: SFT, reward model and the updates of
PPO, with all weights and with adapters. The baseline is the plan; the value is the peak memory of a rank,
without the files of weights that it maps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import tiny_models
from benchmarks.rank_processes import result_of_first
from benchmarks.result import Result, Settings
from fairlead.config import RunConfig
from fairlead.config.saving import as_toml
from fairlead.planning.plan import plan_run

RANKS = 2
TOKENS = 256
"""Tokens of every sequence, and of a micro-batch."""
_CASES: Mapping[str, Mapping[str, object]] = {
    "sft": {},
    "sft_lora": {"lora": {"rank": 16}},
    "reward_model": {},
    "ppo": {"critic_init": "policy"},
    "ppo_lora": {"lora": {"rank": 16}},
}


def run(settings: Settings) -> dict[str, Result]:
    """Measure every case."""
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder, quick=settings.quick)
        for case, section in _CASES.items():
            stage = case.removesuffix("_lora")
            config = _config(folder / case, folder, stage, section)
            planned = _planned(config, stage)
            for rank, peak in enumerate(_measured(config, stage, folder / f"{case}.toml")):
                results[f"{case}_of_rank_{rank}"] = Result(
                    peak / 2**20, "MiB", planned / 2**20, "fairlead plan", at_most=1.15
                )
    return results


def _write_inputs(folder: Path, *, quick: bool) -> None:
    """Write the model and the data."""
    shape = tiny_models.smollm2(
        quick=quick,
        max_position_embeddings=2 * TOKENS,
        pad_token_id=tiny_models.PAD,
        bos_token_id=tiny_models.BOS,
        eos_token_id=tiny_models.EOS,
        num_labels=1,
    )
    tiny_models.save(folder / "model", shape, reward=False)
    words = [" ".join(f"w{5 + (start + index) % 400}" for index in range(TOKENS - 2)) for start in range(8)]
    texts = [{"text": text} for text in words]
    half = TOKENS // 2
    pairs = [
        {"prompt": " ".join(f"w{7 + number}" for _ in range(half - 8)), "chosen": text, "rejected": other}
        for number, (text, other) in enumerate(
            (" ".join(first.split()[:half]), " ".join(second.split()[:half]))
            for first, second in zip(words, reversed(words), strict=True)
        )
    ]
    for name, lines in (("texts", texts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _config(runs: Path, folder: Path, stage: str, section: Mapping[str, object]) -> RunConfig:
    limits = {"max_micro_batch_tokens": TOKENS, "device": "cpu", **section}
    trained = {"epochs": 1, "batch_size": RANKS, "max_sequence_tokens": TOKENS}
    sections: dict[str, dict[str, object]] = {
        "sft": limits | trained,
        "reward_model": limits | trained | {"path": str(folder / "model")},
        "ppo": limits | {"batch_size": RANKS, "mini_batch_size": RANKS},
    }
    model = {"path": str(folder / "model"), "device": "cpu", "max_sequence_tokens": TOKENS}
    values: dict[str, Any] = {
        "runs": runs,
        "base": folder,
        "model": {"path": model["path"]},
        "data": {"demonstrations": "texts.jsonl", "preferences": "pairs.jsonl", "heldout_fraction": 0.2},
        "policy": model,
        "reward": model,
        "reference": model,
        "sampling": {"max_new_tokens": TOKENS // 2},
        "ranks": {"per_node": RANKS},
        stage: sections[stage],
    }
    return RunConfig(**values)


def _planned(config: RunConfig, stage: str) -> int:
    """Return what the plan says of one rank."""
    plan = plan_run(config, prompt_tokens=TOKENS // 2, read_data=False)
    (process, *_) = plan.stage(stage.replace("_", "-")).processes
    return process.on("cpu") // process.replicas


def _measured(config: RunConfig, stage: str, file: Path) -> list[int]:
    """Run the ranks of a stage; return the peak memory of each, in bytes."""
    file.write_text(as_toml(config))
    found: list[int] = result_of_first("benchmarks.rank_memory.rank", stage, str(file), size=RANKS)
    return found
