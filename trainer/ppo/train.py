"""The trainer's life: claim, fence, resume, then update after update until the last.

With `max_staleness = 0` batch u is exactly the next B tasks, answered wholly by the weights of update u; else
`selection` says which tasks an update trains. Everything that decides what was trained is in the checkpoint;
the queue holds only work in progress.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from fairlead import metrics
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.errors import StoppedByGuard
from fairlead.nn.loading import load_tokenizer, set_threads
from fairlead.transports.rollouts.base import OutcomeEntry, TrainerQueue
from fairlead.transports.weights.base import WeightStore
from fairlead.types import DeadLetter, WeightVersion
from trainer import durable, stage
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.ppo import batch, best, learner, publish, result
from trainer.ppo import queue_capacity as room
from trainer.ppo import update_metrics as figures
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.collect import Collector
from trainer.ppo.dispatch import PromptOrder
from trainer.ppo.evaluate import Evaluation
from trainer.ppo.events import Books
from trainer.ppo.incarnation import Incarnation
from trainer.ppo.ledger import Journal
from trainer.ppo.monitor import Monitor
from trainer.ppo.patience import Patience
from trainer.ppo.progress import Progress
from trainer.tracking import Tracker, write_waiting

logger = logging.getLogger(__name__)


def announce(config: RunConfig, waiting_for: str) -> None:
    """Says what the trainer waits for before it knows where it takes up."""
    write_waiting("ppo", config.folder, total=config.ppo.updates, waiting_for=waiting_for)


class PpoTrainer:
    """One incarnation of the trainer."""

    def __init__(
        self,
        config: RunConfig,
        *,
        queue: TrainerQueue,
        store: WeightStore,
        gauges: metrics.TrainerMetrics | None = None,
    ) -> None:
        """Loads models and prompts; nothing is claimed yet.

        Raises:
            ModelLoadError: if the model cannot be loaded.
            ConfigError, DataError: for bad prompts.
        """
        self._config, self._queue, self._store, self._gauges = config, queue, store, gauges
        self._begun = time.monotonic()
        set_threads(config.ppo)
        self._tokenizer = load_tokenizer(config.policy.path or str(config.folder.sft_model))
        self._learner = learner.load(config, self._tokenizer)
        self._evaluation = Evaluation(config, self._tokenizer)
        self._prompts = PromptOrder(
            load_prompts(config).train, self._tokenizer, sampling=config.sampling, seed=config.seed
        )
        self._checkpoints = CheckpointStore(config.folder.checkpoints)
        self._progress = Progress()
        self._tenure = Incarnation(
            config.folder.checkpoints, queue=queue, checkpoints=self._checkpoints, store=store
        )
        self._parent: WeightVersion | None = None
        self._checkpoint_update, self._sent = 0, False
        self._watch = Monitor(config, self._tokenizer, gauges)
        room.tell(config, queue, longest_prompt_bytes=self._prompts.longest_bytes, gauges=gauges)

    @property
    def models(self) -> ActorCritic:
        """Policy and critic as they are now."""
        return self._learner.models

    def run(self, *, on_update: Callable[[int], None] | None = None) -> dict[str, object]:
        """Trains to the last update and returns the result, which is also written to the run's folder.

        `on_update` is called behind every update, with the number of updates done.

        Raises:
            Fenced: if a newer trainer has taken over.
            Stalled: if the queue or the rollouts stay away too long.
            StoppedByGuard: if a signal of reward hacking ended the run; policy and result are written.
        """
        self._take_over(Patience(self._config.queue, lambda what: announce(self._config, what)))
        total, incarnation, folder = self._config.ppo.updates, self._tenure.incarnation, self._config.folder
        books = Books.open(folder, self._progress.ledger, incarnation=incarnation)
        with Tracker(
            "ppo",
            folder,
            total=total,
            first_step=self._progress.update,
            incarnation=incarnation,
            tensorboard=self._config.observe.tensorboard,
            gauges=self._gauges,
        ) as tracker:
            collector = Collector(
                self._queue,
                books=books,
                lineage=self._tenure.lineage,
                section=self._config.queue,
                on_wait=tracker.waiting_for,
                gauges=self._gauges,
                deterministic=self._config.deterministic,
            )
            try:
                books.events.begun(self._progress.update, self._config.ppo)
                self._publish(tracker)
                self._send(collector)
                while self._progress.update < total and self._watch.stopped_by is None:
                    self._one_update(collector, books.journal, tracker)
                    if on_update is not None:
                        on_update(self._progress.update)
                if self._watch.stopped_by is not None:
                    self._roll_back(self._watch.stopped_by.update, tracker)
                return self._finish(tracker)
            finally:
                books.close()
                self._evaluation.close()

    def _take_over(self, patience: Patience) -> None:
        checkpoint = self._tenure.claim(patience)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._watch.resume(checkpoint and checkpoint.state.get("guard"), update=self._progress.update)
        self._tenure.begin(self._progress.update)
        if self._gauges is not None:
            self._gauges.incarnation.set(self._tenure.incarnation)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._progress = Progress.of(checkpoint)
        self._learner.load_state(checkpoint.state)
        self.models.load_state(checkpoint.tensors)
        self._evaluation.load_state(checkpoint.state)
        self._parent = checkpoint.version
        self._checkpoint_update = self._progress.update
        if checkpoint.state.get("config_hash") != stage.config_hash("ppo", self._config):
            logger.warning("checkpoint %s was written with other settings than now", checkpoint.version)

    def _roll_back(self, stopped_at: int, tracker: Tracker) -> None:
        """To the newest weights whose own answers were judged and found good, as a new incarnation."""
        spent = self._progress.seconds
        checkpoint = self._tenure.claim_again(
            Patience(self._config.queue, tracker.waiting_for),
            newest=stopped_at - 2 - self._config.ppo.max_staleness,
        )
        if checkpoint is not None:
            self._resume(checkpoint)
        else:
            self._progress, self._parent = Progress(), None
            self._learner = learner.load(self._config, self._tokenizer)
            self._evaluation.best = None
        self._progress.seconds = spent
        self._tenure.begin(self._progress.update)
        self._publish(tracker)

    @property
    def _version(self) -> WeightVersion:
        return self._tenure.version(self._progress.update)

    def _publish(self, tracker: Tracker) -> None:
        tracker.phase("publish")
        publish.publish(
            self._store,
            self.models.policy,
            self._version,
            parent=self._parent,
            lineage=self._tenure.lineage,
            # A rollout under way may have been begun with weights as old as staleness allows.
            keep=max(self._config.weights.keep, self._config.ppo.max_staleness + 1),
            adapter=self.models.adapter,
        )
        self._parent = self._version
        if self._gauges is not None:
            self._gauges.update.set(self._progress.update)

    def _send(self, collector: Collector) -> None:
        """Opens as many tasks as staleness allows; the first time also those open at the checkpoint."""
        section = self._config.ppo
        new = self._progress.admit(section)
        task_ids = new if self._sent else self._progress.open_tasks()
        self._sent = True
        collector.send(
            self._prompts.tasks(task_ids, min_version=self._version),
            update=self._progress.update,
            max_staleness=section.max_staleness,
        )

    def _one_update(self, collector: Collector, journal: Journal, tracker: Tracker) -> None:
        update = self._progress.update
        tracker.phase("wait")
        entries = collector.wait(size=self._config.ppo.batch_size)
        found = self._learn(entries, tracker)
        found |= figures.staleness(entries, update=update, gauges=self._gauges)
        # The journal first, the queue last: an entry leaves only when its outcome is on the disk.
        journal.append(entries, update=update)
        self._settle(entries)
        self._progress.update += 1
        if self._watch.stopped_by is not None:
            self._record(found, collector, tracker)
            return
        self._publish(tracker)
        # The workers generate on while this batch is written down.
        self._send(collector)
        collector.settled(entries, checkpoint_update=self._checkpoint_update)
        found |= self._evaluation.after(self._version, on_phase=tracker.phase)
        self._maybe_checkpoint(collector, tracker)
        self._record(found, collector, tracker)

    def _learn(self, entries: Sequence[OutcomeEntry], tracker: Tracker) -> dict[str, float]:
        """Trains on the rollouts of a batch; a batch of dead tasks changes nothing."""
        tracker.phase("prepare")
        update = self._progress.update
        rollouts = batch.from_outcomes(
            [entry.outcome for entry in entries], self.models.device, version=self._version
        )
        if rollouts is None:
            logger.error("every task of update %d is dead; nothing to train on", update)
            return {"tokens": 0.0, "kl_coefficient": self._learner.kl_coefficient}
        found = self._learner.learn(rollouts, update=update, on_phase=tracker.phase)
        return found | self._watch.look(rollouts, found, update=update + 1)

    def _settle(self, entries: Sequence[OutcomeEntry]) -> None:
        for entry in entries:
            found = entry.outcome.result
            dead = found.reason if isinstance(found, DeadLetter) else None
            self._progress.ledger.settle(entry.outcome.task.task_id, dead_reason=dead)
            if self._gauges is not None:
                self._gauges.tasks.labels(event="trained" if dead is None else "dead_letter").inc()

    def _maybe_checkpoint(self, collector: Collector, tracker: Tracker) -> None:
        update = self._progress.update
        due = update % self._config.checkpoint.every_updates == 0 or update == self._config.ppo.updates
        if not due and not self._evaluation.is_best(self._version):
            return
        tracker.phase("checkpoint")
        state = {
            **self._progress.state(seconds=time.monotonic() - self._begun),
            **self._learner.state(),
            **self._evaluation.state(),
            "lineage": [[ancestor.incarnation, ancestor.resumed_from] for ancestor in self._tenure.lineage],
            "config_hash": stage.config_hash("ppo", self._config),
            "guard": self._watch.state(),
        }
        self._checkpoints.save(self._version, tensors=self.models.state(), state=state)
        # The newest is judged by its own answers, one update later; should it fail, the one before is kept.
        keep = max(self._config.checkpoint.keep, 2 if self._config.guard.action == "stop" else 1)
        self._checkpoints.prune(keep=keep, lineage=self._tenure.lineage, protected=self._evaluation.kept())
        self._checkpoint_update = update
        collector.checkpointed(update)

    def _record(self, found: dict[str, float], collector: Collector, tracker: Tracker) -> None:
        update = self._progress.update
        found |= figures.times(tracker.seconds_per_phase(), tokens=found["tokens"])
        found |= {"update": float(update)} | figures.queue(collector.stats(), self._gauges)
        if self._gauges is not None:
            self._gauges.tokens.inc(found["tokens"])
        tracker.record(update, found)
        reward, kl = found.get("reward", float("nan")), found.get("kl", float("nan"))
        logger.info("update %d of %d: reward %.3f, KL %.3f", update, self._config.ppo.updates, reward, kl)

    def _finish(self, tracker: Tracker) -> dict[str, object]:
        """Leaves the trained policy and the result, unless a newer trainer is there to do so."""
        self._tenure.confirm()
        publish.save_model(
            self._config.folder.policy_model,
            self.models.policy,
            self._tokenizer,
            merge=self._config.ppo.lora.merge,
        )
        final = result.summarise(
            self._config,
            progress=self._progress,
            lineage=self._tenure.lineage,
            seconds=self._progress.seconds + time.monotonic() - self._begun,
        )
        final |= best.leave(
            self._config,
            self._evaluation.best,
            self._checkpoints,
            like=self.models.policy,
            tokenizer=self._tokenizer,
        )
        final |= self._watch.outcome(updates=self._progress.update)
        durable.write_json(self._config.folder.result("ppo"), final)
        tracker.phase("done")
        if self._watch.stopped_by is not None:
            raise StoppedByGuard(str(final["stopped_by_guard"]))
        return final
