"""`fairlead ppo` with `[ppo.lora]` and real processes: adapters are published and all services use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fairlead.config import RunFolder
from fairlead.config.base import ComputeSection
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from tests.integration.ppo_run import check, make, started

SETTINGS = (
    "ppo.lora.rank=4",
    "ppo.lora.alpha=8",
    "ppo.lora.target_modules=['q_proj','v_proj']",
    "ppo.learning_rate=1e-2",
)
FLAGS = [part for setting in SETTINGS for part in ("--set", setting)]


def check_adapters(folder: RunFolder, base: Path) -> None:
    """Check that a run of three updates has published adapters only, and that every service used them."""
    lines = [json.loads(line) for line in folder.metrics("ppo").read_text().splitlines()]
    assert max(line["mismatch_max"] for line in lines) < 1e-5
    assert abs(lines[0]["kl"]) < 1e-4  # the reference is the base
    assert abs(lines[2]["kl"]) > 1e-4  # and the policy has changed
    store = FilesystemWeightStore(folder.weights)
    assert [version.update for version in store.versions()] == [1, 2, 3]
    whole = (base / "model.safetensors").stat().st_size
    newest = store.latest()
    assert newest is not None
    assert newest.adapter is not None
    assert newest.adapter.base_fingerprint == adapters.fingerprint(str(base))
    assert newest.adapter.config["base_model_name_or_path"] == str(base)
    assert all(".lora_" in tensor.name for tensor in newest.tensors)
    assert sum(shard.size_bytes for shard in newest.shards) < 0.1 * whole
    (shard,) = store.fetch(newest.version).glob("*.safetensors")
    left = load_file(folder.policy_model / adapters.WEIGHTS_FILE)
    assert all(torch.equal(tensor, left[name]) for name, tensor in load_file(shard).items())
    load_causal_lm(str(folder.policy_model), ComputeSection(device="cpu"))


@pytest.mark.slow
def test_reference_in_the_trainer_needs_no_service(tmp_path: Path):
    """With a reference service: see test_local_run_ppo.py."""
    file = make(tmp_path, updates=3)
    with started(file, *FLAGS, "--set", "reference.engine=trainer") as run:
        code, output = run.finish()
        assert code == 0, output + run.log_tails()
        check(run.folder)
    check_adapters(run.folder, tmp_path / "policy")
    assert not run.folder.log("reference-0").exists()
