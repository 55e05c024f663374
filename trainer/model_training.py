"""Training of one language model in a stage that reads files: SFT and the preference stage.

Holds the model, its optimizer and the position, divided among the ranks, and trains epoch by epoch with
checkpoints. Knows no loss: the stage passes a function that yields the parts of the loss of a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.config.preference import PreferenceSection
from fairlead.config.training import SftSection
from fairlead.metrics import ProgressMetrics
from fairlead.nn import adapters
from fairlead.nn.loading import torch_device, torch_dtype
from trainer import finite, memory, optim, seeds
from trainer.distributed import model_folder, sharding
from trainer.distributed.collectives import summed
from trainer.distributed.group import Group
from trainer.distributed.sharding import Root
from trainer.experiments.choice import open_logs
from trainer.model_state import load_optimizer, load_tensors, optimizer_tensors, trained_tensors
from trainer.stage_checkpoint import (
    Position,
    StageCheckpoints,
    may_save,
    stops_agreed,
    uninterrupted,
)
from trainer.tracking import SilentTracker, Tracker

Parts = Iterator[tuple[Tensor, Mapping[str, float]]]
"""The loss of each micro-batch of a step, and its figures; both are shares of the step's."""


_Section = TypeVar("_Section", SftSection, PreferenceSection)


def loaded_section(section: _Section, group: Group) -> _Section:
    """Return the settings that the initial model is loaded with: trained weights are float32, and several
    ranks hold their rows in the memory of the host until the model is divided.
    """
    changes = {"device": "cpu"} if group.size > 1 else {}
    if not section.lora.rank:
        changes["dtype"] = "float32"
    return section.model_copy(update=changes)


class ModelTraining:
    """Model, optimizer and position of a stage. `restore` continues from the newest checkpoint."""

    def __init__(
        self,
        stage: str,
        config: RunConfig,
        model: PreTrainedModel,
        checkpoints: StageCheckpoints,
        group: Group,
    ) -> None:
        """Divide the model among the ranks, and read the position of the newest checkpoint, if there is one.

        Args:
            stage: `sft` or `preference`, whose section of the configuration is read.
            config: the run.
            model: the initial model, with adapters if the section has them.
            checkpoints: those of the stage.
            group: the ranks that train together.
        """
        section: SftSection | PreferenceSection = getattr(config, stage)
        self.stage = stage
        self.config = config
        self.section = section
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
        """How far training has come."""
        self._checkpoints = checkpoints
        self._finite_steps = finite.FiniteSteps(stage, rate=f"{stage}.learning_rate")
        self._checkpoint = checkpoints.load()
        if self._checkpoint is not None:
            self.position = Position.from_state(self._checkpoint.state)

    def restore(self) -> None:
        """Load weights and optimizer of the checkpoint; until then the model has its initial weights."""
        if self._checkpoint is not None:
            load_tensors(self.model, self._checkpoint.tensors["model"], "model")
            load_optimizer(self.model, self.optimizer, self._checkpoint.tensors["optimizer"])
            self._checkpoint = None

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {
            "model": trained_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        self._checkpoints.save(self.position, tensors)

    def publish(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tracker: Tracker, *, what: str
    ) -> None:
        """Write the trained model as a folder that appears when it is complete.

        Args:
            folder: where.
            tokenizer: written with the model.
            tracker: gets the phase.
            what: what is trained, for the error.

        Raises:
            NotFinite: if a weight is not finite.
        """
        group, rate = self.root.group, f"{self.stage}.learning_rate"
        tensors = trained_tensors(self.model)
        finite.check_weights(tensors, what=f"{self.stage}: {what}", rate=rate, group=group)
        tracker.phase("publish")
        tracker.doing("writing the model")
        with model_folder.new_folder(folder, group) as made:
            model_folder.write(made, self.model, group, merge=self.section.lora.merge)
            if group.is_first:
                tokenizer.save_pretrained(made)
        group.idle("has written the model")

    def num_steps(self, count: int) -> int:
        """Return the number of optimizer steps of the whole stage with `count` examples."""
        return self.section.epochs * math.ceil(count / self.section.batch_size)

    def tracker(self, count: int, metrics: ProgressMetrics | None) -> Tracker:
        """Return the tracker of the stage with `count` examples; only that of the first rank writes."""
        if not self.root.group.is_first:
            return SilentTracker(first_step=self.position.step)
        return Tracker(
            self.stage,
            self.config.folder,
            total=self.num_steps(count),
            first_step=self.position.step,
            logs=open_logs(self.stage, self.config, first_step=self.position.step),
            metrics=metrics,
        )

    def epochs(
        self,
        count: int,
        parts: Callable[[list[int]], Parts],
        evaluate: Callable[[], None],
        tracker: Tracker,
    ) -> float:
        """Train from the position to the last epoch; return its mean loss.

        Args:
            count: examples of an epoch.
            parts: yields the parts of the loss of a step from the indices of its examples.
            evaluate: called after every epoch, on every rank.
            tracker: gets the figures of every step.

        Raises:
            NotFinite: if losses or gradients are not finite.
        """
        group = self.root.group
        try:
            with stops_agreed(group):
                while True:
                    tracker.phase("train")
                    for figures in self._epoch(count, parts):
                        tracker.record(self.position.step, figures)
                    tracker.phase("evaluate")
                    evaluate()
                    train_loss = self._mean_loss()
                    if not self._advance():
                        return train_loss
        except SystemExit as stop:
            if may_save(stop, group):
                self.save()
            raise

    def _epoch(self, count: int, parts: Callable[[list[int]], Parts]) -> Iterator[dict[str, float]]:
        """Train the rest of the current epoch; yield the figures of each step and advance the position."""
        position = self.position
        total = self.num_steps(count)
        order = seeds.permutation(count, self.config.seed, self.stage, position.epoch)
        batches = seeds.batches(order, size=self.section.batch_size)
        for indices in itertools.islice(batches, len(position.losses), None):
            with uninterrupted(self.root.group):
                figures = self._step(parts(indices), total=total)
                numbers = {"the loss": figures["loss"], "the gradient": figures["gradient_norm"]}
                self._finite_steps.check(numbers, where=f"step {position.step + 1}")
                position.step += 1
                position.losses.append(figures["loss"])
                # Within the block: the figures of a step are recorded before a signal takes effect.
                yield {**figures, "epoch": position.epoch + 1}
            if self._checkpoints.is_due(position.step):
                self.save()

    def _step(self, parts: Parts, *, total: int) -> dict[str, float]:
        """Train one optimizer step, of `total`; return its figures."""
        section, step, group = self.section, self.position.step, self.root.group
        optim.set_scheduled_rate(self.optimizer, section, step, total)
        figures = {"loss": 0.0}
        numbered = [group.share] if group.share else []
        drops = adapters.dropout(self.model, seed=seeds.derive(self.config.seed, "dropout", step, *numbered))
        with drops if section.lora.dropout else nullcontext():
            for loss, found in parts:
                memory.backward(loss)
                for name, value in {"loss": float(loss.detach()), **found}.items():
                    figures[name] = figures.get(name, 0.0) + value
        figures = summed(figures, group)
        norm = optim.clipped_step(
            self.optimizer,
            optim.learning(self.model),
            max_norm=section.max_gradient_norm,
            loss=figures["loss"],
        )
        group.idle("has finished a step")
        return {**figures, "gradient_norm": norm}

    def _mean_loss(self) -> float:
        """Return the mean loss of the steps of the current epoch."""
        mean = sum(self.position.losses) / len(self.position.losses)
        finite.check_mean(self.stage, "loss", mean)
        return mean

    def _advance(self) -> bool:
        """Begin the next epoch; False if this was the last."""
        if self.position.epoch + 1 == self.section.epochs:
            return False
        with uninterrupted(self.root.group):
            self.position.epoch += 1
            self.position.losses = []
        return True
