"""Training the reward model on comparisons, from the SFT model with a new scalar head.

Reads rankings and pairs, writes a model folder (or that of an ensemble) which the reward service loads. Knows
nothing about services or the queue.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from fairlead.config import RunConfig
from fairlead.data.records import load_preferences
from fairlead.data.template import apply_settings
from fairlead.errors import ConfigError
from fairlead.metrics import ProgressMetrics
from fairlead.nn import adapters
from fairlead.nn.loading import (
    check_vocabulary,
    load_tokenizer,
    max_sequence_tokens,
    set_threads,
)
from fairlead.nn.reward_model import RewardModel, load_divided_reward_model, load_reward_model
from trainer import compiling, durable, finite, memory, optim, seeds
from trainer.distributed import model_folder, sharding
from trainer.distributed.collectives import summed
from trainer.distributed.group import Group
from trainer.distributed.loading import loader
from trainer.experiments.choice import open_logs
from trainer.model_state import load_optimizer, load_tensors, optimizer_tensors, trained_tensors
from trainer.rankings import EncodedRanking, counts, encoded
from trainer.results import config_hash
from trainer.reward_model import finish, loss
from trainer.reward_model.divided import body_and_head, divide
from trainer.reward_model.evaluate import evaluate
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


def train(
    config: RunConfig, metrics: ProgressMetrics | None = None, *, group: Group | None = None
) -> finish.Result:
    """Train, write the model folder and the result, and return the result.

    Args:
        config: the run.
        metrics: of this process.
        group: the ranks that train together, all of which call this; None: only this process. The first
            rank writes the files.

    Raises:
        ConfigError: if there are no comparisons, or most of them cannot be learnt within the limit of tokens.
        ModelLoadError: if the initial model cannot be loaded.
        NotFinite: if losses, gradients or weights are not finite.
    """
    begun = time.monotonic()
    section = config.reward_model
    group = group or Group.single()
    set_threads(section)
    path = section.path or str(config.folder.sft_model)
    preferences = load_preferences(config)
    tokenizer = load_tokenizer(path)
    if section.path:
        apply_settings(tokenizer, config)
    members = tuple(_fresh(config, path, number, group) for number in range(section.ensemble_size))
    check_vocabulary(path, members[0].model, tokenizer)
    limit = max_sequence_tokens(members[0].model, section.max_sequence_tokens)
    known, heldout = encoded(config, preferences, tokenizer, stage="reward_model", max_tokens=limit)
    _check_margins(config, known.rankings)
    checkpoints = StageCheckpoints(
        "reward_model",
        config,
        sequences=(
            sequence for ranking in known.rankings for sequence in (*ranking.sequences, *ranking.pairs)
        ),
        group=group,
    )
    training = _Training(config, members, checkpoints, group, path=path)
    members = training.members
    with _tracker(config, training, num_rankings=len(known.rankings), metrics=metrics) as tracker:
        train_loss = _epochs(config, training, known.rankings, heldout.rankings, tracker)
        _check_weights(members, group)
        training.save()  # what follows takes a while on long data, and starts from here if it is interrupted
        tracker.phase("evaluate")
        doing = partial(_doing, tracker, group)
        centred = finish.centre(config, members, tokenizer, limit, doing)
        _check_weights(members, group)
        figures, temperature = finish.measure(config, members, known.rankings, heldout.rankings, doing)
        tracker.phase("publish")
        tracker.doing("writing the model")
        with model_folder.new_folder(config.folder.reward_model, group) as folder:
            finish.save(config, folder, members, tokenizer, temperature)
        group.idle("has written the model")
        result: finish.Result = {
            **figures,
            **centred,
            **counts(known, heldout),
            "train_loss": train_loss,
            "seconds": time.monotonic() - begun,
            "epochs": section.epochs,
            "ensemble_size": section.ensemble_size,
            "trained_parameters": sum(p.numel() for model in members for p in model.parameters()),
            "config_hash": config_hash("reward_model", config),
        }
        if group.is_first:
            durable.write_json(config.folder.result("reward_model"), result)
        checkpoints.forget()
        tracker.phase("done")
    pairs = result["heldout_comparisons"]
    logger.info("reward_model: held-out accuracy %.4f of %d pairs", result["accuracy"], pairs)
    return result


def _check_margins(config: RunConfig, rankings: Sequence[EncodedRanking]) -> None:
    if config.reward_model.margin and not any(any(ranking.margins) for ranking in rankings):
        raise ConfigError(
            "reward_model.margin",
            got=f"{config.reward_model.margin:g}, but no comparison says by how much an answer is better",
            allowed="0, or comparisons with `score`, or pairs with a number under `margin`",
        )


def _fresh(config: RunConfig, path: str, member: int, group: Group) -> RewardModel:
    section = config.reward_model
    if group.size > 1:
        # Rows are in the memory of the host until the model is divided.
        section = section.model_copy(update={"device": "cpu"})
    # Trained weights are float32, and the body computes in `dtype`; a frozen base may be kept in it.
    exact = section if section.lora.rank else section.model_copy(update={"dtype": "float32"})
    numbered = [member] if member else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(config.seed, "reward_head", *numbered))
        if group.size > 1:
            reward = load_divided_reward_model(path, exact, loader(group), fresh_head=True)
        else:
            reward = load_reward_model(path, exact, fresh_head=True)
    if section.lora.rank:
        seed = seeds.derive(config.seed, "reward_lora", *numbered)
        adapters.add(reward.model, section.lora, base=path, field="reward_model.lora", seed=seed)
    compiling.prepare_blocks(reward.body, section, field="reward_model")
    return reward


class _Training:
    """The members of an ensemble, trained one after the other, and how far that has come."""

    def __init__(
        self,
        config: RunConfig,
        members: Sequence[RewardModel],
        checkpoints: StageCheckpoints,
        group: Group,
        *,
        path: str,
    ) -> None:
        """Divide the members among the ranks, and continue from the newest checkpoint, if there is one."""
        self._config = config
        self.group = group
        self.dtype = sharding.autocast_dtype(config.reward_model, group)
        """Type that autocast computes in."""
        self.members = tuple(divide(model, config.reward_model, group, path=path) for model in members)
        self._checkpoints = checkpoints
        self.finite_steps = finite.FiniteSteps("reward_model", rate="reward_model.learning_rate")
        self.position = Position()
        checkpoint = checkpoints.load()
        if checkpoint is not None:
            self.position = Position.from_state(checkpoint.state)
            for number in range(self.position.member + 1):
                tensors = checkpoint.tensors[f"member-{number}"]
                load_tensors(body_and_head(self.members[number]), tensors, "reward model")
        self.optimizer = self._new_optimizer()
        if checkpoint is not None:
            load_optimizer(body_and_head(self.model), self.optimizer, checkpoint.tensors["optimizer"])

    @property
    def model(self) -> RewardModel:
        """The member that is being trained."""
        return self.members[self.position.member]

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {
            f"member-{number}": trained_tensors(body_and_head(self.members[number]))
            for number in range(self.position.member + 1)
        }
        tensors["optimizer"] = optimizer_tensors(body_and_head(self.model), self.optimizer)
        self._checkpoints.save(self.position, tensors)

    def save_if_due(self) -> None:
        """Write a checkpoint every `checkpoint.every_steps` steps."""
        if self._checkpoints.is_due(self.position.step):
            self.save()

    def advance(self) -> bool:
        """Begin the next epoch, of the next member after the last one; False if everything is trained."""
        position = self.position
        last_epoch = position.epoch + 1 == self._config.reward_model.epochs
        if last_epoch and position.member + 1 == len(self.members):
            return False
        with uninterrupted(self.group):
            if last_epoch:
                position.member_losses.append(_mean(position.losses))
                position.member += 1
                self.optimizer = self._new_optimizer()
            position.epoch = 0 if last_epoch else position.epoch + 1
            position.losses = []
        return True

    def train_loss(self) -> float:
        """Return the mean loss of the last epochs of all members."""
        found = 0.0
        for member_loss in (*self.position.member_losses, _mean(self.position.losses)):
            found += member_loss / len(self.members)
        return found

    def _new_optimizer(self) -> torch.optim.Optimizer:
        section = self._config.reward_model
        return optim.adamw(
            self.model.parameters(), learning_rate=section.learning_rate, weight_decay=section.weight_decay
        )


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


def _check_weights(members: Sequence[RewardModel], group: Group) -> None:
    for model in members:
        finite.check_weights(
            trained_tensors(body_and_head(model)),
            what="reward_model: the model",
            rate="reward_model.learning_rate",
            group=group,
        )


def _tracker(
    config: RunConfig, training: _Training, *, num_rankings: int, metrics: ProgressMetrics | None
) -> Tracker:
    if not training.group.is_first:
        return SilentTracker(first_step=training.position.step)
    section = config.reward_model
    steps = section.epochs * math.ceil(num_rankings / section.batch_size)
    return Tracker(
        "reward_model",
        config.folder,
        total=steps * section.ensemble_size,
        first_step=training.position.step,
        logs=open_logs("reward_model", config, first_step=training.position.step),
        metrics=metrics,
    )


def _epochs(
    config: RunConfig,
    training: _Training,
    rankings: Sequence[EncodedRanking],
    heldout: Sequence[EncodedRanking],
    tracker: Tracker,
) -> float:
    """Train every member, from the newest checkpoint on; return the mean loss of their last epochs."""
    section = config.reward_model
    try:
        with stops_agreed(training.group):
            while True:
                tracker.phase("train")
                for figures in _epoch(config, training, rankings):
                    tracker.record(training.position.step, figures)
                    training.save_if_due()
                train_loss = _mean(training.position.losses)
                finite.check_mean("reward_model", "loss", train_loss)
                tracker.phase("evaluate")
                if heldout:
                    found = evaluate(
                        training.model,
                        heldout,
                        max_tokens=section.max_micro_batch_tokens,
                        dtype=training.dtype,
                        doing=partial(_doing, tracker, training.group),
                    )
                    tracker.record(tracker.step, {f"heldout_{name}": value for name, value in found.items()})
                    finite.check_mean("reward_model", "held-out loss", found["loss"])
                if not training.advance():
                    break
    except SystemExit as stop:
        if may_save(stop, training.group):
            training.save()
        raise
    return training.train_loss()


def _doing(tracker: Tracker, group: Group, what: str, done: int, total: int) -> None:
    """Report what is done; several ranks, which all do it, also agree whether to stop.

    Without a total nothing is reported before it is done, so it is no order with a limit of progress.
    """
    agree_to_stop(group)
    if total:
        group.progress(what)
    else:
        group.idle(what)
    tracker.doing(what, done, total)


def _epoch(
    config: RunConfig, training: _Training, rankings: Sequence[EncodedRanking]
) -> Iterator[dict[str, float]]:
    """Train the rest of the current epoch; yield the figures of each step and advance the position."""
    section = config.reward_model
    position = training.position
    model = training.model
    optimizer = training.optimizer
    parameters = model.parameters()
    per_epoch = math.ceil(len(rankings) / section.batch_size)
    numbered = [position.epoch, *([position.member] if position.member else [])]
    order = seeds.permutation(len(rankings), config.seed, "reward_model", *numbered)
    for indices in itertools.islice(
        seeds.batches(order, size=section.batch_size), len(position.losses), None
    ):
        with uninterrupted(training.group):
            step = position.epoch * per_epoch + len(position.losses)
            optim.set_scheduled_rate(optimizer, section, step, section.epochs * per_epoch)
            step_loss = 0.0
            with _dropout(config, model, position.step, training.group):
                for part in loss.micro_batch_losses(
                    model,
                    [rankings[index] for index in indices],
                    max_tokens=section.max_micro_batch_tokens,
                    dtype=training.dtype,
                    group=training.group,
                    loss=loss.RankingLoss(section.margin, section.label_smoothing),
                ):
                    memory.backward(part)
                    step_loss += float(part.detach())
            step_loss = summed({"loss": step_loss}, training.group)["loss"]
            norm = optim.clipped_step(
                optimizer, parameters, max_norm=section.max_gradient_norm, loss=step_loss
            )
            training.group.idle("has finished a step")
            numbers = {"the loss": step_loss, "the gradient": norm}
            training.finite_steps.check(numbers, where=f"step {position.step + 1}")
            position.losses.append(step_loss)
            position.step += 1
            # Within the block: the figures of a step are recorded before a signal takes effect.
            yield {
                "loss": step_loss,
                "gradient_norm": norm,
                "epoch": position.epoch + 1,
                "member": position.member,
            }


def _dropout(config: RunConfig, model: RewardModel, step: int, group: Group) -> AbstractContextManager[None]:
    """Return a context in which the dropout of adapters is on, if there is any."""
    if not config.reward_model.lora.dropout:
        return nullcontext()
    numbered = [group.share] if group.share else []
    seed = seeds.derive(config.seed, "reward_dropout", step, *numbered)
    return adapters.dropout(model.model, seed=seed)
