"""What the ranks of `test_stage_checkpoint.py` do: a signal stops a stage that evaluates; it continues."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fairlead.config import load
from fairlead.config.saving import save
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import reward_model_run, sft_run
from trainer.checkpoint import CheckpointStore
from trainer.distributed.group import Group
from trainer.reward_model import train as reward_model
from trainer.sft import train as sft
from trainer.stage_checkpoint import root

TRAIN = {"sft": sft.train, "reward_model": reward_model.train}


def write_runs(stage: str, folder: Path) -> list[str]:
    """Write the files of two equal runs of a stage, `whole` and `cut`; return their paths."""
    files = []
    for name in ("whole", "cut"):
        if stage == "sft":
            config = sft_run(folder / name, epochs=2, threads=1)
        else:
            path = str(tiny_causal_lm(folder / "base")) if name == "whole" else str(folder / "base")
            small = {"epochs": 2, "threads": 1, "max_micro_batch_tokens": 32, "path": path}
            config = reward_model_run(folder / name, comparisons=40, **small)
        files.append(folder / f"{name}.toml")
        save(config, files[-1])
    return list(map(str, files))


def check_stopped(found: list[dict[str, object]], folder: Path) -> None:
    """Check that both ranks stopped together, and that the run which continued has the bits of the other."""
    # One epoch is trained, and its evaluation was not finished.
    assert found == [{"code": 143, "step": found[0]["step"], "epoch": 0, "member": 0}] * 2
    whole, cut = (digests(folder / name / "runs") for name in ("whole", "cut"))
    assert whole
    assert whole == cut


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file of weights."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def stop_in_evaluation(group: Group, stage: str, whole: str, cut: str) -> dict[str, object]:
    """Run a stage as `whole` says; run it as `cut` says, let rank 1 get SIGTERM as it begins to evaluate, and
    continue.

    Returns:
        The exit code of the stop, and the position in the checkpoint.
    """
    TRAIN[stage](load(Path(whole)), group=group)
    config = load(Path(cut))
    sent = []

    def kill(module: nn.Module, inputs: object) -> None:
        # Models are checked without gradients, too, but before signals are caught.
        caught = callable(signal.getsignal(signal.SIGTERM))
        if group.rank == 1 and caught and not torch.is_grad_enabled() and not sent:
            sent.append(module)
            os.kill(os.getpid(), signal.SIGTERM)

    hook = register_module_forward_pre_hook(kill)
    code: object = 0
    try:
        TRAIN[stage](config, group=group)
    except SystemExit as stop:
        code = stop.code
    hook.remove()
    group.barrier()
    store = CheckpointStore(root(stage, config))
    state = store.load(store.versions()[-1]).state
    group.barrier()
    TRAIN[stage](config, group=group)
    return {"code": code, **{name: state[name] for name in ("step", "epoch", "member")}}
