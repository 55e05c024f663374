"""Supervised fine-tuning: from a base model, or from scratch, to the model that the other stages start from.

Reads demonstrations, writes a model folder. Knows nothing about services or the queue.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.demonstrations import FORMATS, Conversation, Demonstration, Example
from fairlead.data.records import Split, load_demonstrations
from fairlead.data.template import apply_settings
from fairlead.errors import ConfigError
from fairlead.metrics import TrainerMetrics
from fairlead.nn import adapters
from fairlead.nn.loading import (
    check_vocabulary,
    load_causal_lm,
    load_tokenizer,
    max_sequence_tokens,
    set_threads,
    torch_device,
    torch_dtype,
)
from fairlead.nn.unembedding import check_unembedding
from trainer import demonstrations as encoding
from trainer import durable, finite, memory, optim, seeds
from trainer.model_state import load_optimizer, load_tensors, optimizer_tensors, trained_tensors
from trainer.results import config_hash
from trainer.sequences import TokenSequence
from trainer.sft import loss, packing, scratch
from trainer.stage_checkpoint import Position, StageCheckpoints, uninterrupted
from trainer.tracking import Tracker

logger = logging.getLogger(__name__)


Result = dict[str, float | str | dict[str, float]]


def train(config: RunConfig, metrics: TrainerMetrics | None = None) -> Result:
    """Fine-tune, write the model folder and the result, and return the result.

    Raises:
        ConfigError: if no demonstration fits the model, or the model does not support packing.
        DataError: for conversations without a chat template.
        ModelLoadError: if the base model cannot be loaded.
        NotFinite: if losses, gradients or weights are not finite.
    """
    begun = time.monotonic()
    section = config.sft
    set_threads(section)
    demonstrations = load_demonstrations(config)
    model, tokenizer = base_model(config, demonstrations)
    check_unembedding(model)
    _prepare(config, model)
    limit = max_sequence_tokens(model, section.max_sequence_tokens)
    sequences, truncated = encoding.encode(demonstrations.train, tokenizer, max_tokens=limit)
    heldout = {
        name: encoding.encode(examples, tokenizer, max_tokens=limit)[0]
        for name, examples in by_format(demonstrations.heldout).items()
    }
    if not sequences:
        raise ConfigError(
            "sft.max_sequence_tokens",
            got=limit,
            allowed="more tokens than the prompts of the demonstrations",
        )
    if truncated:
        logger.warning("%d demonstrations are longer than %d tokens and were cut", truncated, limit)
    if section.batching == "packing":
        packing.check(model, sequences)
    checkpoints = StageCheckpoints("sft", config, sequences=(one.token_ids for one in sequences))
    train_loss, heldout_losses = _epochs(config, model, sequences, heldout, metrics, checkpoints)
    finite.check_weights(trained_tensors(model), what="sft: the model", rate="sft.learning_rate")
    with durable.new_folder(config.folder.sft_model) as folder:
        adapters.save(model, folder, merge=section.lora.merge)
        tokenizer.save_pretrained(folder)
    result: Result = {
        "train_loss": train_loss,
        "heldout_loss": heldout_losses.pop("all"),
        "heldout_loss_by_format": heldout_losses,
        "seconds": time.monotonic() - begun,
        "demonstrations": len(sequences),
        "heldout_demonstrations": sum(map(len, heldout.values())),
        "truncated": truncated,
        "epochs": section.epochs,
        "parameters": sum(parameter.numel() for parameter in nn.Module.parameters(model)),
        "trained_parameters": sum(parameter.numel() for parameter in optim.learning(model)),
        "config_hash": config_hash("sft", config),
    }
    durable.write_json(config.folder.result("sft"), result)
    checkpoints.forget()
    logger.info("sft: held-out loss %.4f after %.1f s", result["heldout_loss"], result["seconds"])
    return result


def base_model(
    config: RunConfig, demonstrations: Split[Example]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of `[model] path`, or new ones; trained weights are float32."""
    section = config.sft
    if not section.lora.rank:
        section = section.model_copy(update={"dtype": "float32"})
    elif not config.model.path:
        raise ConfigError("sft.lora.rank", got=section.lora.rank, allowed="0, or a [model] path to adapt")
    if config.model.path:
        model = load_causal_lm(config.model.path, section)
        tokenizer = load_tokenizer(config.model.path)
        apply_settings(tokenizer, config)
        check_vocabulary(config.model.path, model, tokenizer)
        return model, tokenizer
    tokenizer = scratch.make_tokenizer(_texts(demonstrations), config.model.scratch)
    apply_settings(tokenizer, config)
    seed = seeds.derive(config.seed, "scratch")
    model = scratch.make_model(tokenizer, config.model.scratch, seed=seed)
    nn.Module.to(model, torch_device(section.device))
    nn.Module.eval(model)
    return model, tokenizer


def _prepare(config: RunConfig, model: PreTrainedModel) -> None:
    """Add adapters and gradient checkpointing, if configured."""
    section = config.sft
    if section.lora.rank:
        seed = seeds.derive(config.seed, "lora")
        adapters.add(model, section.lora, base=config.model.path, field="sft.lora", seed=seed)
    if section.gradient_checkpointing:
        memory.recompute_blocks(model, field="sft")


def _texts(demonstrations: Split[Example]) -> Iterable[str]:
    for record in itertools.chain(demonstrations.train, demonstrations.heldout):
        if isinstance(record, Demonstration):
            yield record.prompt
            yield record.completion
        elif isinstance(record, Conversation):
            yield from (message.content for message in record.messages)
        else:
            yield record.text


def _epochs(
    config: RunConfig,
    model: PreTrainedModel,
    sequences: list[TokenSequence],
    heldout: dict[str, list[TokenSequence]],
    metrics: TrainerMetrics | None,
    checkpoints: StageCheckpoints,
) -> tuple[float, dict[str, float]]:
    """Train from the newest checkpoint to the last epoch; return its mean loss and the held-out losses."""
    section = config.sft
    # Evaluation mode throughout: only the dropout of adapters is on while learning.
    optimizer = optim.adamw(
        optim.learning(model), learning_rate=section.learning_rate, weight_decay=section.weight_decay
    )
    total = section.epochs * math.ceil(len(sequences) / section.batch_size)
    position = Position()
    if (checkpoint := checkpoints.load()) is not None:
        position = Position.from_state(checkpoint.state)
        load_tensors(model, checkpoint.tensors["model"], "model")
        load_optimizer(model, optimizer, checkpoint.tensors["optimizer"])

    def save() -> None:
        tensors = {"model": trained_tensors(model), "optimizer": optimizer_tensors(model, optimizer)}
        checkpoints.save(position, tensors)

    finite_steps = finite.FiniteSteps("sft", rate="sft.learning_rate")
    train_loss = float("nan")
    losses: dict[str, float] = {}
    with Tracker(
        "sft",
        config.folder,
        total=total,
        first_step=position.step,
        tensorboard=config.observe.tensorboard,
        metrics=metrics,
    ) as tracker:
        try:
            while True:
                tracker.phase("train")
                order = batches(
                    len(sequences), size=section.batch_size, seed=config.seed, epoch=position.epoch
                )
                for indices in itertools.islice(order, len(position.losses), None):
                    with uninterrupted():
                        batch = [sequences[index] for index in indices]
                        figures = _step(config, model, optimizer, batch, step=position.step, total=total)
                        numbers = {"the loss": figures["loss"], "the gradient": figures["gradient_norm"]}
                        finite_steps.check(numbers, where=f"step {position.step + 1}")
                        position.step += 1
                        position.losses.append(figures["loss"])
                        tracker.record(position.step, {**figures, "epoch": position.epoch + 1})
                    if checkpoints.is_due(position.step):
                        save()
                tracker.phase("evaluate")
                train_loss = sum(position.losses) / len(position.losses)
                losses = heldout_losses(
                    model, heldout, max_tokens=section.max_micro_batch_tokens, dtype=torch_dtype(section)
                )
                if any(heldout.values()):
                    figures = {"heldout_loss": losses["all"], "epoch": position.epoch + 1}
                    tracker.record(position.step, figures)
                    finite.check_mean("sft", "held-out loss", losses["all"])
                finite.check_mean("sft", "loss", train_loss)
                if position.epoch + 1 == section.epochs:
                    break
                with uninterrupted():
                    position.epoch += 1
                    position.losses = []
        except SystemExit:
            save()
            raise
        tracker.phase("done")
    return train_loss, losses


def _step(
    config: RunConfig,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: list[TokenSequence],
    *,
    step: int,
    total: int,
) -> dict[str, float]:
    """Train one optimizer step; return its loss and gradient norm."""
    section = config.sft
    factor = optim.warmup_then_linear(step, total=total, warmup_fraction=section.warmup_fraction)
    optim.set_learning_rate(optimizer, section.learning_rate * factor)
    row_tokens = (
        max_sequence_tokens(model, section.max_sequence_tokens) if section.batching == "packing" else 0
    )
    step_loss = 0.0
    drops = adapters.dropout(model, seed=seeds.derive(config.seed, "dropout", step))
    with drops if section.lora.dropout else nullcontext():
        for part in loss.micro_batch_losses(
            model,
            batch,
            max_tokens=section.max_micro_batch_tokens,
            row_tokens=row_tokens,
            dtype=torch_dtype(section),
        ):
            part.backward()  # type: ignore[no-untyped-call]
            step_loss += float(part.detach())
    norm = optim.clipped_step(
        optimizer, optim.learning(model), max_norm=section.max_gradient_norm, loss=step_loss
    )
    return {"loss": step_loss, "gradient_norm": norm}


def heldout_losses(
    model: PreTrainedModel, heldout: dict[str, list[TokenSequence]], *, max_tokens: int, dtype: torch.dtype
) -> dict[str, float]:
    """Return nats per learned token of each format, and of `all` tokens together; NaN without tokens."""
    losses = {
        name: loss.mean_loss(model, sequences, max_tokens=max_tokens, dtype=dtype)
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


def batches(count: int, *, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the indices of each optimizer step of an epoch, in one permutation per epoch."""
    order = seeds.permutation(count, seed, "sft", epoch)
    for start in range(0, count, size):
        yield order[start : start + size]
