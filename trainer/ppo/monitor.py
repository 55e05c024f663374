"""Record and judge the rollouts of every update: sample answers, fresh labels, the guard.

Called by the training loop after each update. Reports read the samples; people rank them to label how far
the reward model can be trusted (`fresh_labels`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.metrics import TrainerMetrics
from trainer import durable
from trainer.ppo import signals
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.fresh_labels import FreshLabels
from trainer.ppo.guard import Alert, Guard, read_quantiles


class Monitor:
    """Guard, fresh labels and samples of one trainer."""

    def __init__(
        self, config: RunConfig, tokenizer: PreTrainedTokenizerBase, metrics: TrainerMetrics | None = None
    ) -> None:
        self._path = config.folder.rollout_samples
        self._samples_per_update = config.observe.rollout_samples
        self._tokenizer = tokenizer
        self._limits = config.guard
        self._guard = Guard(
            config.guard,
            baseline_updates=config.ppo.max_staleness + 1,
            quantiles=read_quantiles(config.folder.result("reward_model"))
            if config.reward.is_model
            else None,
            metrics=metrics,
        )
        self._labels: FreshLabels | None = None
        if config.data.fresh_rankings:
            self._labels = FreshLabels(
                config.data_path(config.data.fresh_rankings),
                num_pairs=config.guard.fresh_label_pairs,
                tie_margin=config.data.tie_margin,
            )

    @property
    def stopped_by(self) -> Alert | None:
        """The alert that ends the run; None while it may continue."""
        return self._guard.stopped_by

    def observe(self, batch: RolloutBatch, figures: Mapping[str, float], *, update: int) -> dict[str, float]:
        """Record samples of an update and judge it; return the signals as figures, `guard_<signal>`.

        Args:
            batch: the rollouts of the update.
            figures: the figures of its learning, see `signals.measure`.
            update: number of the update, from 1.
        """
        self._write_samples(batch, update)
        overconfidence = self._labels.overconfidence() if self._labels is not None else None
        return self._guard.judge(batch, figures, update=update, overconfidence=overconfidence)

    def is_contradicted(self, figures: Mapping[str, float]) -> bool:
        """Return whether fresh labels contradict the reward model, by the figures that `observe` returned."""
        limit = self._limits.overconfidence_stop_above
        found = figures.get(f"guard_{signals.OVERCONFIDENCE}")
        return limit is not None and found is not None and found > limit

    def result(self, *, updates: int) -> dict[str, object]:
        """Return the part of the result about the guard: `guards`, and after a stop `stopped_by_guard`.

        Args:
            updates: updates of the weights that the run ends with.
        """
        found: dict[str, object] = {"guards": [asdict(alert) for alert in self._guard.alerts]}
        if self.stopped_by is not None:
            where = f"the checkpoint of update {updates}" if updates else "the model that it began with"
            found["stopped_by_guard"] = (
                f"PPO was stopped by its guard: {self.stopped_by}; the run went back to {where}"
            )
        return found

    def state(self) -> dict[str, object]:
        """Return the state for the checkpoint."""
        return self._guard.state()

    def resume(self, state: object, *, update: int) -> None:
        """Continue after `update`: restore the guard and drop later samples of an interrupted run.

        Raises:
            CorruptCheckpoint: if the state is invalid.
        """
        self._guard.load_state(state)
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if row["update"] <= update:
                    kept.append(line)
                    self._remember([row])
            except (ValueError, KeyError):
                continue  # a line cut short by a crash
        replacement = self._path.with_name(f".{self._path.name}")
        replacement.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        replacement.replace(self._path)

    def _remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if self._labels is not None:
            self._labels.remember((row["prompt"], row["text"], float(row["score"])) for row in rows)

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _write_samples(self, batch: RolloutBatch, update: int) -> None:
        rows = []
        for index in _by_prompts(batch)[: self._samples_per_update]:
            sequence = batch.sequences[index]
            row = {
                "update": update,
                "task": batch.task_ids[index],
                "prompt": self._text(sequence.token_ids[: sequence.prompt_length]),
                "text": self._text(sequence.token_ids[sequence.prompt_length :]),
                "ended": not bool(batch.cut_off_B[index]),
                "score": float(batch.scores_B[index]),
            }
            if batch.terms:
                row["terms"] = {name: float(scores_B[index]) for name, scores_B in batch.terms.items()}
            rows.append(row)
        self._remember(rows)
        if rows:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(durable.dumps(row) + "\n" for row in rows))


def _by_prompts(batch: RolloutBatch) -> list[int]:
    """Return the rollouts in an order whose beginning has as many prompts as possible."""
    seen = Counter[int]()
    places = []
    for index, group in enumerate(batch.groups_B.tolist()):
        places.append((seen[group], index))
        seen[group] += 1
    return [index for _, index in sorted(places)]
