"""Supervised fine-tuning: from a base model, or from scratch, to the model that the other stages start from.

Reads demonstrations, writes a model folder. Knows nothing about services or the queue.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

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
from trainer.distributed import loading, model_folder, sharding
from trainer.distributed.collectives import summed
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root
from trainer.model_state import load_optimizer, load_tensors, optimizer_tensors, trained_tensors
from trainer.results import config_hash
from trainer.sequences import TokenSequence
from trainer.sft import loss, packing, scratch
from trainer.stage_checkpoint import (
    Position,
    StageCheckpoints,
    agree_to_stop,
    may_save,
    stops_agreed,
    uninterrupted,
)
from trainer.tracking import SilentTracker, Tracker

logger = logging.getLogger(__name__)


Result = dict[str, float | str | dict[str, float]]


def train(config: RunConfig, metrics: TrainerMetrics | None = None, *, group: Group | None = None) -> Result:
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
    training = _Training(config, model, checkpoints, group)
    if group.size > 1:
        training.check(longest=limit)
    with _tracker(config, training, num_sequences=len(sequences), metrics=metrics) as tracker:
        train_loss, heldout_losses = _epochs(config, training, sequences, heldout, tracker)
        finite.check_weights(
            trained_tensors(model), what="sft: the model", rate="sft.learning_rate", group=group
        )
        tracker.phase("publish")
        tracker.doing("writing the model")
        with model_folder.new_folder(config.folder.sft_model, group) as folder:
            model_folder.write(folder, model, group, merge=section.lora.merge)
            if group.is_first:
                tokenizer.save_pretrained(folder)
        group.idle("has written the model")
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
    """Return model and tokenizer of `[model] path`, or new ones; trained weights are float32.

    Several ranks hold their rows in the memory of the host until the model is divided.
    """
    section = config.sft.model_copy(update={"device": "cpu"}) if group.size > 1 else config.sft
    if not section.lora.rank:
        section = section.model_copy(update={"dtype": "float32"})
    elif not config.model.path:
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


class _Training:
    """Model, optimizer and position of the stage, from the newest checkpoint on."""

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, checkpoints: StageCheckpoints, group: Group
    ) -> None:
        """Divide the model among the ranks, and continue from the newest checkpoint, if there is one."""
        section = config.sft
        self.config = config
        self.model = model
        device = torch_device(section.device) if group.size > 1 else model.device
        self.root = Root(model, group, device=device)
        self.dtype = sharding.autocast_dtype(section, group)
        """Type that autocast computes in."""
        compute = torch_dtype(section)
        sharding.shard(self.root, device, compute=compute, group=group, offload=section.offload)
        # Evaluation mode throughout: only the dropout of adapters is on while learning.
        self.optimizer = optim.adamw(
            optim.learning(model), learning_rate=section.learning_rate, weight_decay=section.weight_decay
        )
        self.position = Position()
        self._checkpoints = checkpoints
        self._finite_steps = finite.FiniteSteps("sft", rate="sft.learning_rate")
        if (checkpoint := checkpoints.load()) is not None:
            self.position = Position.from_state(checkpoint.state)
            load_tensors(model, checkpoint.tensors["model"], "model")
            load_optimizer(model, self.optimizer, checkpoint.tensors["optimizer"])

    def check(self, *, longest: int) -> None:
        """Check what `train` checks of a whole model, with the one that the ranks hold together.

        Args:
            longest: tokens of the longest sequence.

        Raises:
            ModelLoadError, ConfigError: if the architecture cannot be trained as configured.
        """
        self.root.check(check_unembedding)
        if self.config.sft.batching == "packing":
            self.root.check(functools.partial(packing.check, longest=longest))

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {
            "model": trained_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        self._checkpoints.save(self.position, tensors)

    def num_steps(self, num_sequences: int) -> int:
        """Return the number of optimizer steps of the whole stage."""
        section = self.config.sft
        return section.epochs * math.ceil(num_sequences / section.batch_size)

    def epoch(self, sequences: Sequence[TokenSequence]) -> Iterator[dict[str, float]]:
        """Train the rest of the current epoch; yield the figures of each step and advance the position."""
        position = self.position
        section = self.config.sft
        total = self.num_steps(len(sequences))
        order = batches(len(sequences), size=section.batch_size, seed=self.config.seed, epoch=position.epoch)
        for indices in itertools.islice(order, len(position.losses), None):
            with uninterrupted(self.root.group):
                batch = [sequences[index] for index in indices]
                figures = _step(self, batch, total=total)
                numbers = {"the loss": figures["loss"], "the gradient": figures["gradient_norm"]}
                self._finite_steps.check(numbers, where=f"step {position.step + 1}")
                position.step += 1
                position.losses.append(figures["loss"])
                # Within the block: the figures of a step are recorded before a signal takes effect.
                yield {**figures, "epoch": position.epoch + 1}
            if self._checkpoints.is_due(position.step):
                self.save()

    def mean_loss(self) -> float:
        """Return the mean loss of the steps of the current epoch."""
        mean = sum(self.position.losses) / len(self.position.losses)
        finite.check_mean("sft", "loss", mean)
        return mean

    def advance(self) -> bool:
        """Begin the next epoch; False if this was the last."""
        if self.position.epoch + 1 == self.config.sft.epochs:
            return False
        with uninterrupted(self.root.group):
            self.position.epoch += 1
            self.position.losses = []
        return True


def _tracker(
    config: RunConfig, training: _Training, *, num_sequences: int, metrics: TrainerMetrics | None
) -> Tracker:
    if not training.root.group.is_first:
        return SilentTracker(first_step=training.position.step)
    return Tracker(
        "sft",
        config.folder,
        total=training.num_steps(num_sequences),
        first_step=training.position.step,
        tensorboard=config.observe.tensorboard,
        metrics=metrics,
    )


def _epochs(
    config: RunConfig,
    training: _Training,
    sequences: list[TokenSequence],
    heldout: dict[str, list[TokenSequence]],
    tracker: Tracker,
) -> tuple[float, dict[str, float]]:
    """Train from the newest checkpoint to the last epoch; return its mean loss and the held-out losses."""
    section = config.sft
    group = training.root.group
    try:
        with stops_agreed(group):
            while True:
                tracker.phase("train")
                for figures in training.epoch(sequences):
                    tracker.record(training.position.step, figures)
                tracker.phase("evaluate")
                losses = heldout_losses(
                    training.root,
                    heldout,
                    max_tokens=section.max_micro_batch_tokens,
                    dtype=training.dtype,
                    on_micro_batch=partial(agree_to_stop, group),
                )
                if any(heldout.values()):
                    figures = {"heldout_loss": losses["all"], "epoch": training.position.epoch + 1}
                    tracker.record(training.position.step, figures)
                    finite.check_mean("sft", "held-out loss", losses["all"])
                train_loss = training.mean_loss()
                if not training.advance():
                    break
    except SystemExit as stop:
        if may_save(stop, group):
            training.save()
        raise
    return train_loss, losses


def _step(training: _Training, batch: list[TokenSequence], *, total: int) -> dict[str, float]:
    """Train one optimizer step, of `total`; return its loss and gradient norm."""
    section = training.config.sft
    model, step, group = training.model, training.position.step, training.root.group
    optim.set_scheduled_rate(training.optimizer, section, step, total)
    row_tokens = (
        max_sequence_tokens(model, section.max_sequence_tokens) if section.batching == "packing" else 0
    )
    step_loss = 0.0
    numbered = [group.share] if group.share else []
    drops = adapters.dropout(model, seed=seeds.derive(training.config.seed, "dropout", step, *numbered))
    with drops if section.lora.dropout else nullcontext():
        for part in loss.micro_batch_losses(
            training.root,
            batch,
            max_tokens=section.max_micro_batch_tokens,
            row_tokens=row_tokens,
            dtype=training.dtype,
        ):
            memory.backward(part)
            step_loss += float(part.detach())
    step_loss = summed({"loss": step_loss}, group)["loss"]
    norm = optim.clipped_step(
        training.optimizer, optim.learning(model), max_norm=section.max_gradient_norm, loss=step_loss
    )
    group.idle("has finished a step")
    return {"loss": step_loss, "gradient_norm": norm}


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


def batches(count: int, *, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the indices of each optimizer step of an epoch, in one permutation per epoch."""
    order = seeds.permutation(count, seed, "sft", epoch)
    for start in range(0, count, size):
        yield order[start : start + size]
