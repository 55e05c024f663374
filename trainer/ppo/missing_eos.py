"""The penalty of a missing end: about one standard deviation of the reward model's scores, unless it is set.

A reward model judges what an answer says and not whether it ended, so without a penalty an answer that runs
to the length limit may score higher than one that ends. OpenAI's code replaces the score of such an answer
(The N Implementation Details of RLHF with PPO, the EOS trick); a deviation is in the unit of the scores.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from torch import Tensor

from fairlead.config import RunConfig
from fairlead.config.training import PpoSection
from fairlead.errors import ModelLoadError
from fairlead.nn.ensemble import member_paths
from fairlead.nn.reward_model import REWARD_DEVIATION

logger = logging.getLogger(__name__)


def of_settings(section: PpoSection) -> float | None:
    """Return the penalty that the settings determine; None if the scores do.

    Normalised scores have a deviation of 1.
    """
    if section.missing_eos_penalty is None and section.normalise_scores:
        return 1.0
    return section.missing_eos_penalty


def of_reward_model(config: RunConfig) -> float | None:
    """Return the deviation of scores that training recorded beside the run's reward model.

    None for functions and combined rewards, and for a model of the hub, one that others trained, or one that
    is not on this machine.
    """
    if not config.reward.is_model:
        return None
    path = config.reward.path or str(config.folder.reward_model)
    try:
        file = Path(member_paths(path)[0]).expanduser() / "config.json"
        found = json.loads(file.read_text(encoding="utf-8")).get(REWARD_DEVIATION)
    except (OSError, ValueError, AttributeError, ModelLoadError):
        return None
    return float(found) if isinstance(found, int | float) and 0 < found < math.inf else None


def of_scores(scores_B: Tensor) -> float | None:
    """Return the deviation of a batch of scores, the same on every rank; None if all are equal."""
    found = float(scores_B.double().std(unbiased=False))
    return found if 0 < found < math.inf else None
