"""Supervised fine-tuning: from a base model, or from scratch, to the model that the other stages start from.

Reads demonstrations, writes a model folder. Knows nothing about services or the queue.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.demonstrations import FORMATS, Conversation, Demonstration, Example
from fairlead.data.records import Split, load_demonstrations
from fairlead.data.template import apply_settings
from fairlead.errors import ConfigError
from fairlead.metrics import ProgressMetrics
from fairlead.nn import adapters
from fairlead.nn.loading import (
    check_vocabulary,
    load_causal_lm,
    load_tokenizer,
    max_sequence_tokens,
    set_threads,
    torch_device,
)
from fairlead.nn.unembedding import check_unembedding
from trainer import compiling, durable, finite, optim, seeds
from trainer import demonstrations as encoding
from trainer.distributed import loading
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root
from trainer.model_training import ModelTraining, Parts, loaded_section
from trainer.results import config_hash
from trainer.sequences import TokenSequence
from trainer.sft import loss, packing, scratch
from trainer.stage_checkpoint import StageCheckpoints, agree_to_stop
from trainer.tracking import Tracker

logger = logging.getLogger(__name__)


Result = dict[str, float | str | dict[str, float]]


def train(config: RunConfig, metrics: ProgressMetrics | None = None, *, group: Group | None = None) -> Result:
    """Fine-tune, write the model folder and the result, and return the result.

    Args:
        config: the run.
        metrics: of this process.
        group: the ranks that train together, all of which call this; None: only this process. The first
            rank writes the files.

    Raises:
        ConfigError: if no demonstration fits the model, or the model does not support packing.
        DataError: for conversations without a chat template.
        ModelLoadError: if the base model cannot be loaded.
        NotFinite: if losses, gradients or weights are not finite.
    """
    begun = time.monotonic()
    section = config.sft
    group = group or Group.single()
    set_threads(section)
    demonstrations = load_demonstrations(config)
    model, tokenizer = base_model(config, demonstrations, group)
    if group.size == 1:
        check_unembedding(model)
    _prepare(config, model)
    limit = max_sequence_tokens(model, section.max_sequence_tokens)
    known, heldout = _encoded(demonstrations, tokenizer, max_tokens=limit)
    sequences = known.sequences
    if section.batching == "packing" and group.size == 1:
        packing.check(model, longest=limit)
    checkpoints = StageCheckpoints("sft", config, sequences=(one.token_ids for one in sequences), group=group)
    training = ModelTraining("sft", config, model, checkpoints, group)
    training.restore()
    if group.size > 1:
        _check(training, longest=limit)
    with training.tracker(len(sequences), metrics) as tracker:
        train_loss, heldout_losses = _train(training, sequences, heldout, tracker)
        training.publish(config.folder.sft_model, tokenizer, tracker, what="the model")
        result: Result = {
            "train_loss": train_loss,
            "heldout_loss": heldout_losses.pop("all"),
            "heldout_loss_by_format": heldout_losses,
            "seconds": time.monotonic() - begun,
            "demonstrations": len(sequences),
            "heldout_demonstrations": sum(map(len, heldout.values())),
            "truncated": known.cut + known.left_out,
            "left_out": known.left_out,
            "epochs": section.epochs,
            "parameters": sum(parameter.numel() for parameter in nn.Module.parameters(model)),
            "trained_parameters": sum(parameter.numel() for parameter in optim.learning(model)),
            "config_hash": config_hash("sft", config),
        }
        if group.is_first:
            durable.write_json(config.folder.result("sft"), result)
        checkpoints.forget()
        tracker.phase("done")
    logger.info("sft: held-out loss %.4f after %.1f s", result["heldout_loss"], result["seconds"])
    return result


def _encoded(
    demonstrations: Split[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[encoding.EncodedExamples, dict[str, list[TokenSequence]]]:
    """Return the training demonstrations, and the held-out ones by format."""
    known = encoding.encode(demonstrations.train, tokenizer, max_tokens=max_tokens)
    if not known.sequences:
        raise ConfigError(
            "sft.max_sequence_tokens",
            got=max_tokens,
            allowed="more tokens than the prompts of the demonstrations",
        )
    remedy = "raise sft.max_sequence_tokens if the model reads more"
    known.warn("data.demonstrations", max_tokens=max_tokens, remedy=remedy)
    heldout = {
        name: encoding.encode(examples, tokenizer, max_tokens=max_tokens).sequences
        for name, examples in by_format(demonstrations.heldout).items()
    }
    return known, heldout


def base_model(
    config: RunConfig, demonstrations: Split[Example], group: Group
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of `[model] path`, or new ones."""
    section = loaded_section(config.sft, group)
    if section.lora.rank and not config.model.path:
        raise ConfigError("sft.lora.rank", got=section.lora.rank, allowed="0, or a [model] path to adapt")
    if config.model.path:
        model = load_causal_lm(config.model.path, section, load=loading.loader(group))
        tokenizer = load_tokenizer(config.model.path)
        apply_settings(tokenizer, config)
        check_vocabulary(config.model.path, model, tokenizer)
        return model, tokenizer
    tokenizer = scratch.make_tokenizer(_texts(demonstrations), config.model.scratch)
    apply_settings(tokenizer, config)
    seed = seeds.derive(config.seed, "scratch")
    make = functools.partial(scratch.make_model, tokenizer, config.model.scratch)
    if group.size > 1:
        # Any rank draws the same weights, but only one needs memory for all of them.
        return loading.sent(lambda: make(seed=seed if group.is_first else None), group), tokenizer
    model = make(seed=seed)
    nn.Module.to(model, torch_device(section.device))
    nn.Module.eval(model)
    return model, tokenizer


def _prepare(config: RunConfig, model: PreTrainedModel) -> None:
    """Add adapters, and compile or recompute the blocks, if configured."""
    section = config.sft
    if section.lora.rank:
        seed = seeds.derive(config.seed, "lora")
        adapters.add(model, section.lora, base=config.model.path, field="sft.lora", seed=seed)
    compiling.prepare_blocks(model, section, field="sft")


def _texts(demonstrations: Split[Example]) -> Iterable[str]:
    for record in itertools.chain(demonstrations.train, demonstrations.heldout):
        if isinstance(record, Demonstration):
            yield record.prompt
            yield record.completion
        elif isinstance(record, Conversation):
            yield from (message.content for message in record.messages)
        else:
            yield record.text


def _check(training: ModelTraining, *, longest: int) -> None:
    """Check what `train` checks of a whole model, with the one that the ranks hold together.

    Args:
        training: the model.
        longest: tokens of the longest sequence.

    Raises:
        ModelLoadError, ConfigError: if the architecture cannot be trained as configured.
    """
    training.root.check(check_unembedding)
    if training.config.sft.batching == "packing":
        training.root.check(functools.partial(packing.check, longest=longest))


def _train(
    training: ModelTraining,
    sequences: list[TokenSequence],
    heldout: dict[str, list[TokenSequence]],
    tracker: Tracker,
) -> tuple[float, dict[str, float]]:
    """Train from the newest checkpoint to the last epoch; return its mean loss and the held-out losses."""
    section = training.config.sft
    longest = max_sequence_tokens(training.model, section.max_sequence_tokens)
    losses: dict[str, float] = {}

    def parts(indices: list[int]) -> Parts:
        for part in loss.micro_batch_losses(
            training.root,
            [sequences[index] for index in indices],
            max_tokens=section.max_micro_batch_tokens,
            row_tokens=longest if section.batching == "packing" else 0,
            dtype=training.dtype,
        ):
            yield part, {}

    def evaluate() -> None:
        losses.update(
            heldout_losses(
                training.root,
                heldout,
                max_tokens=section.max_micro_batch_tokens,
                dtype=training.dtype,
                on_micro_batch=partial(agree_to_stop, training.root.group),
            )
        )
        if any(heldout.values()):
            figures = {"heldout_loss": losses["all"], "epoch": training.position.epoch + 1}
            tracker.record(training.position.step, figures)
            finite.check_mean("sft", "held-out loss", losses["all"])

    return training.epochs(len(sequences), parts, evaluate, tracker), losses


def heldout_losses(
    root: Root,
    heldout: dict[str, list[TokenSequence]],
    *,
    max_tokens: int,
    dtype: torch.dtype,
    on_micro_batch: Callable[[], None],
) -> dict[str, float]:
    """Return nats per learned token of each format, and of `all` tokens together; NaN without tokens."""
    losses = {
        name: loss.mean_loss(
            root, sequences, max_tokens=max_tokens, dtype=dtype, on_micro_batch=on_micro_batch
        )
        for name, sequences in heldout.items()
    }
    tokens = {name: sum(s.response_length for s in sequences) for name, sequences in heldout.items()}
    total = sum(losses[name] * count for name, count in tokens.items() if count)
    return {**losses, "all": total / sum(tokens.values()) if sum(tokens.values()) else float("nan")}


def by_format(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Return the examples of each format that occurs, by the name of the format."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(FORMATS[type(example)], []).append(example)
    return found
