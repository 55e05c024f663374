"""Leaves the policy that evaluated best beside the last one, at the end of a run."""

from __future__ import annotations

import logging
import shutil

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.errors import CorruptCheckpoint
from trainer.checkpoint import CheckpointStore
from trainer.ppo import actor_critic, publish
from trainer.ppo.evaluate import Best

logger = logging.getLogger(__name__)


def leave(
    config: RunConfig,
    best: Best | None,
    checkpoints: CheckpointStore,
    *,
    like: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, object]:
    """Writes `policy_best/` from its checkpoint, and says which it is; nothing without an evaluation.

    Args:
        config: the run.
        best: which update evaluated best.
        checkpoints: where its tensors are.
        like: a policy of the same shape.
        tokenizer: goes beside the weights.
    """
    path = config.folder.best_policy_model
    shutil.rmtree(path, ignore_errors=True)  # of a run before `--force`
    if best is None:
        return {}
    try:
        tensors = checkpoints.load(best.version).tensors["policy"]
    except CorruptCheckpoint as error:
        logger.error("the best checkpoint cannot be read, there is no %s: %s", path, error)
        return {}
    policy = actor_critic.with_tensors(like, tensors)
    publish.save_model(path, policy, tokenizer, merge=config.ppo.lora.merge)
    return {"best_update": best.version.update, "best_eval_reward": best.reward}
