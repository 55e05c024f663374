"""Result files, `result_<stage>.json`: the hash of the settings in them, and whether a stage has finished."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from fairlead.config import RunConfig
from fairlead.errors import EXIT_CODE, StoppedByGuard

logger = logging.getLogger(__name__)

STAGE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "sft": ("model", "data", "sft"),
    "reward_model": ("data", "reward_model"),
    "preference": ("data", "preference"),
    "ppo": ("data", "ppo", "sampling"),
}
"""Sections of the configuration that determine the result of a stage."""


def config_hash(stage: str, config: RunConfig) -> str:
    """Return the hash of a stage's settings, which its result and its checkpoints carry."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in STAGE_SECTIONS[stage]}
    text = json.dumps({"seed": config.seed, **sections}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def exit_code_if_done(
    stage: str, config: RunConfig, differences: Sequence[str] = (), *, force: bool = False
) -> int | None:
    """Return the exit code of a stage that is already done, and log it; None if there is work left.

    Args:
        stage: `sft`, `reward_model`, `preference` or `ppo`.
        config: the run.
        differences: what the result was made from that has changed since.
        force: whether it runs again, so that the log need not say how.
    """
    path = config.folder.result(stage)
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if stage == "ppo" and int(result.get("updates", 0)) < config.ppo.updates:
        # With another action than `stop`, a run that its guard ended continues from its last good checkpoint.
        if "stopped_by_guard" not in result or config.guard.action != "stop":
            return None
        if not force:
            logger.warning("%s (--force runs it again)", result["stopped_by_guard"])
        return EXIT_CODE[StoppedByGuard]
    if force:
        return 0
    # Results of earlier versions have only the hash of their settings.
    changed = not config.folder.inputs(stage).exists() and result.get("config_hash") != config_hash(
        stage, config
    )
    how = f", but with other inputs ({'; '.join(differences)})" if differences else ""
    logger.warning(
        "%s is already done%s: see %s (--force runs it again)",
        stage,
        ", but with different settings" if changed else how,
        path,
    )
    return 0
