"""What is kept and judged of the rollouts of every update: the guard's signals, and some of the answers.

Stands beside the training loop; the samples are read by reports, and by examples that know a gold reward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from fairlead import metrics
from fairlead.config import RunConfig
from trainer import durable
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.fresh_labels import FreshLabels
from trainer.ppo.guard import Alert, Guard, read_quantiles


class Monitor:
    """Guard and samples of one trainer."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        gauges: metrics.TrainerMetrics | None = None,
    ) -> None:
        self._path, self._count = config.folder.rollout_samples, config.observe.rollout_samples
        self._tokenizer = tokenizer
        self._guard = Guard(
            config.guard, quantiles=read_quantiles(config.folder.result("reward_model")), gauges=gauges
        )
        self._labels: FreshLabels | None = None
        if config.data.fresh_rankings:
            self._labels = FreshLabels(
                config.data_path(config.data.fresh_rankings),
                num_pairs=config.guard.fresh_label_pairs,
                tie_margin=config.data.tie_margin,
            )

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Everything that fired, in order."""
        return self._guard.alerts

    @property
    def stopped_by(self) -> Alert | None:
        """The alert that ends the run; None while it may go on."""
        return self._guard.stopped_by

    def look(self, batch: RolloutBatch, figures: Mapping[str, float], *, update: int) -> dict[str, float]:
        """Keeps samples of an update and judges it; returns the signals as figures."""
        self._keep(batch, update)
        labelled = self._labels.overconfidence() if self._labels is not None else None
        return self._guard.look(batch, figures, update=update, overconfidence=labelled)

    def outcome(self, *, updates: int) -> dict[str, object]:
        """What the result of PPO holds: `guards`, and after a stop `stopped_by_guard`, a sentence.

        Args:
            updates: updates behind the weights that the run ends with.
        """
        found: dict[str, object] = {"guards": [asdict(alert) for alert in self.alerts]}
        if self.stopped_by is not None:
            where = f"the checkpoint of update {updates}" if updates else "the model that it began with"
            found["stopped_by_guard"] = f"PPO was stopped by its guard: {self.stopped_by}; back to {where}"
        return found

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return self._guard.state()

    def resume(self, state: object, *, update: int) -> None:
        """Goes on behind `update`: samples of later ones, of a run that was interrupted, are dropped.

        Raises:
            CorruptCheckpoint: if the state has another form.
        """
        self._guard.load_state(state)
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            try:
                row = json.loads(line)
                if row["update"] <= update:
                    kept.append(line)
                    self._remember([row])
            except (ValueError, KeyError):
                continue  # a line torn by a crash
        if self._path.exists():
            aside = self._path.with_name(f".{self._path.name}")
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            aside.replace(self._path)

    def _remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if self._labels is not None:
            self._labels.remember((row["prompt"], row["text"], float(row["score"])) for row in rows)

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _keep(self, batch: RolloutBatch, update: int) -> None:
        rows = []
        for index, sequence in enumerate(batch.sequences[: self._count]):
            row = {
                "update": update,
                "task": batch.task_ids[index],
                "prompt": self._text(sequence.token_ids[: sequence.prompt_length]),
                "text": self._text(sequence.token_ids[sequence.prompt_length :]),
                "ended": not bool(batch.cut_off_B[index]),
                "score": float(batch.scores_B[index]),
            }
            rows.append(row)
        self._remember(rows)
        if rows:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(durable.dumps(row) + "\n" for row in rows))
