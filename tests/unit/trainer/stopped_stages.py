"""What the ranks of `test_stage_checkpoint.py` do: a signal stops a stage that evaluates; it continues."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fairlead.config import load
from trainer.checkpoint import CheckpointStore
from trainer.distributed.group import Group
from trainer.reward_model import train as reward_model
from trainer.sft import train as sft
from trainer.stage_checkpoint import root

TRAIN = {"sft": sft.train, "reward_model": reward_model.train}


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
