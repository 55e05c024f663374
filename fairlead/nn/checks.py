"""Checks of a model's files before they are read, and of its weights after it.

Each failure is a ModelLoadError that names the file or the tensor. Called by loading.py.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fairlead.errors import ModelLoadError, pickle_refused
from fairlead.nn import adapters

logger = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"
"""Names the file of each tensor, if a model has several."""

_NUMBER = re.compile(r"\.\d+\.")
"""The number of a layer or expert in the name of a weight."""


_STATE_OF_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""Beginnings of the names of files that other trainers write next to weights."""


def refuse_pickle(path: str, *patterns: str, unless: str) -> None:
    """Reject a folder that has weights in files that match the patterns, and none that match `unless`.

    Raises:
        ModelLoadError: if so; names the file and how to convert it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() or any(folder.glob(unless)):
        return
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            if not file.name.startswith(_STATE_OF_TRAINING):
                raise pickle_refused(path, file.name)


def check_index(path: str) -> None:
    """Check that the index of a model's files names only files in its folder.

    Raises:
        ModelLoadError: if it names another one, or is damaged.
    """
    file = Path(path).expanduser() / INDEX_FILE
    if not file.is_file():
        return
    try:
        names = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        others = sorted(str(name) for name in names if Path(name).name != name or name == "..")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{file} is not a valid index of weights: {error!r}") from error
    if others:
        raise ModelLoadError(
            f"{file} names {others[0]!r}: give files in the folder of the index, by their names"
        )


def check_unread(path: str, model: PreTrainedModel, unread: Collection[str]) -> None:
    """Warn of weights of a checkpoint that the model does not read, other than a head for another task.

    Raises:
        ModelLoadError: if they are of further layers or experts: the model would be another one.
    """
    others = sorted(name for name in unread if name.partition(".")[0] not in (*adapters.HEADS, "lm_head"))
    prefix = f"{model.base_model_prefix}."
    read = {_NUMBER.sub(".N.", name.removeprefix(prefix)) for name in model.state_dict()}
    more = [name for name in others if _NUMBER.sub(".N.", name.removeprefix(prefix)) in read]
    if more:
        raise ModelLoadError(
            f"{path!r} has weights of more layers or experts than its config.json says, such as {more[0]}: "
            "give the config.json that belongs to the weights"
        )
    if others:
        logger.warning(
            "%d weights of %r are not read, because %s has none of their names: %s",
            *(len(others), path, type(model).__name__, ", ".join(others[:5])),
        )


def check_finite(path: str, model: PreTrainedModel) -> None:
    """Check every weight of a model, of a divided one only those that this process holds.

    Raises:
        ModelLoadError: if one is NaN or infinite; names the tensor.
    """
    for name, parameter in model.named_parameters():
        to_local = getattr(parameter.detach(), "to_local", None)
        held = parameter.detach() if to_local is None else to_local()
        # NaN is the least and the greatest of any tensor that contains it.
        if held.numel() and not torch.stack(torch.aminmax(held)).isfinite().all():
            raise ModelLoadError(
                f"{path!r} has weights that are NaN or infinite, such as in {name}: the file is damaged, or "
                "its training has diverged; give an earlier checkpoint"
            )
