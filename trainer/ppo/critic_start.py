"""Where the critic of a run starts: from the reward model where that is possible, else from the policy.

Both papers on RLHF start the value function from the reward model (Stiennon et al. 2020, section 3.4; Ouyang
et al. 2022, appendix C.4). Decides by configurations and tokenizers, before any weights are read, so that
every rank and every restart decides the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.errors import ModelLoadError
from fairlead.nn.ensemble import member_paths
from fairlead.nn.loading import load_config, load_tokenizer, tokenizer_fingerprint
from trainer.ppo import actor_critic

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CriticStart:
    """The model that a critic starts from."""

    reward_model: str | None
    """Path of the reward model; None: the policy."""
    reason: str = ""
    """Why it is the policy, if that was decided here."""


def choose(config: RunConfig) -> CriticStart:
    """Return where the critic starts, `ppo.critic_init = "auto"` resolved. Of an ensemble, the first member.

    Raises:
        ModelLoadError: with `critic_init = "reward_model"`, if an ensemble is damaged.
    """
    section = config.ppo
    path = config.reward.path or str(config.folder.reward_model)
    if not section.has_critic or section.critic_init == "policy":
        return CriticStart(None)
    if section.critic_init == "reward_model":
        return CriticStart(member_paths(path)[0])
    reason = _obstacle(path, config)
    return CriticStart(None, reason) if reason else CriticStart(member_paths(path)[0])


def log(config: RunConfig, start: CriticStart) -> None:
    """Log where the critic starts, if there is one."""
    if start.reward_model is not None:
        logger.info("the critic starts from the reward model %s", start.reward_model)
    elif start.reason:
        logger.info("the critic starts from the policy, with a head of zeros: %s", start.reason)
    elif config.ppo.has_critic:
        logger.info("the critic starts from the policy, with a head of zeros")


def _obstacle(path: str, config: RunConfig) -> str:
    """Return why a critic does not start from the reward model at a path by default; empty if it does."""
    if not config.reward.is_model:
        return f"with reward.engine = {config.reward.engine!r} the reward is not one model"
    if config.ppo.lora.rank:
        return "with [ppo.lora] it shares the frozen weights of the policy"
    if not config.reward.path and not Path(path).is_dir():
        return f"there is no reward model at {path}"
    try:
        return _unfit(member_paths(path)[0], config)
    except ModelLoadError as error:
        return f"the reward model cannot be read here: {error}"


def _unfit(path: str, config: RunConfig) -> str:
    """Return why a critic of this policy cannot start from a reward model; empty if it can."""
    policy = actor_critic.initial_path(config)
    ours, theirs = (tokenizer_fingerprint(load_tokenizer(one)) for one in (policy, path))
    if ours != theirs:
        return f"the reward model {path} has another tokenizer"
    ours, theirs = (_architecture(one) for one in (policy, path))
    if ours != theirs:
        return f"the reward model {path} is a {theirs}, and the policy a {ours}"
    return ""


def _architecture(path: str) -> str:
    """Return kind and size of a model. The critic of `auto` is as large as the policy, never larger."""
    config = load_config(path)
    text = config.get_text_config()
    layers, width = (getattr(text, name, "unknown") for name in ("num_hidden_layers", "hidden_size"))
    return f"{config.model_type} model of {layers} layers and width {width}"
