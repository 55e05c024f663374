"""The life of a trainer: claim an incarnation, resume, and run updates until the last one.

With `max_staleness = 0` batch u is exactly the next B tasks, answered entirely by the weights of update u, or
with `dynamic_sampling` the next tasks of which B have a signal; otherwise `selection` decides which tasks an
update trains. The checkpoint holds everything that decides what was trained; the queue holds only work in
progress.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from fairlead import log
from fairlead.config import RunConfig
from fairlead.data.records import load_prompts
from fairlead.errors import NothingToTrain, StoppedByGuard
from fairlead.metrics import TrainerMetrics
from fairlead.nn.loading import max_sequence_tokens, set_threads
from fairlead.transports.rollouts.base import OutcomeEntry, TrainerQueue
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import DeadLetter, WeightVersion
from fairlead.update_line import log_update
from trainer import durable
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.distributed.group import Group
from trainer.experiments.choice import open_logs
from trainer.ppo import batch, learner, publish, result, update_metrics
from trainer.ppo.actor_critic import ActorCritic
from trainer.ppo.collect import Collector
from trainer.ppo.dispatch import PromptOrder
from trainer.ppo.dynamic_sampling import EVENT, DynamicSampling, SignalCheck
from trainer.ppo.evaluate import Evaluation
from trainer.ppo.incarnation import Incarnation
from trainer.ppo.learner import Learner
from trainer.ppo.monitor import Monitor
from trainer.ppo.orders import Leader
from trainer.ppo.progress import TrainingProgress
from trainer.ppo.queue_capacity import log_capacity
from trainer.ppo.retry_queue import QueueRetry
from trainer.ppo.task_records import Journal, TaskRecords
from trainer.ppo.task_traces import UpdateTrace
from trainer.ppo.utilization import Utilization
from trainer.results import config_hash
from trainer.tracking import Tracker, write_waiting

logger = logging.getLogger(__name__)

MAX_EMPTY_UPDATES = 3
"""Updates in a row without any rollout to train on that end the run."""


def report_waiting(config: RunConfig, waiting_for: str) -> None:
    """Write to the progress file what the trainer waits for before it knows at which update it begins."""
    write_waiting("ppo", config.folder, total=config.ppo.updates, waiting_for=waiting_for)


class PpoTrainer:
    """One incarnation of the trainer."""

    def __init__(
        self,
        config: RunConfig,
        *,
        queue: TrainerQueue,
        store: FilesystemWeightStore,
        metrics: TrainerMetrics | None = None,
        group: Group | None = None,
    ) -> None:
        """Load models and prompts; nothing is claimed yet.

        Args:
            config: the run.
            queue: carries tasks and outcomes.
            store: gets the versions of the policy.
            metrics: of this process.
            group: the ranks that train together, of which this is rank 0; None: only this process.

        Raises:
            ModelLoadError: if a model cannot be loaded.
            ConfigError, DataError: for bad prompts.
        """
        self._config = config
        self._queue = queue
        self._store = store
        self._metrics = metrics
        self._begun = time.monotonic()
        set_threads(config.ppo)
        self._tokenizer = learner.initial_tokenizer(config)
        self._leader = Leader(config, self._tokenizer, group or Group.single())
        context_tokens = max_sequence_tokens(self.models.policy, config.policy.max_sequence_tokens)
        self._evaluation = Evaluation(config, self._tokenizer, context_tokens=context_tokens)
        self._prompts = PromptOrder(
            load_prompts(config).train,
            self._tokenizer,
            sampling=config.sampling,
            seed=config.seed,
            num_samples=config.ppo.num_samples,
            context_tokens=context_tokens,
        )
        self._checkpoints = CheckpointStore(config.folder.checkpoints)
        self._progress = TrainingProgress()
        self._incarnation = Incarnation(
            config.folder.checkpoints, queue=queue, checkpoints=self._checkpoints, store=store
        )
        self._monitor = Monitor(config, self._tokenizer, metrics)
        self._parent: WeightVersion | None = None
        self._checkpoint_update = 0
        self._sent_open_tasks = False
        self._empty_updates = 0
        self._trace = UpdateTrace()
        self._utilization = Utilization.of(config, self.models.device, num_gpus=self.models.group.size)
        self._tokens_read = 0
        log_capacity(config, queue, longest_prompt_bytes=self._prompts.longest_bytes, metrics=metrics)

    @property
    def models(self) -> ActorCritic:
        """The trained models in their present state."""
        return self._learner.models

    @property
    def _learner(self) -> Learner:
        return self._leader.learner

    def run(self, *, on_update: Callable[[int], None] | None = None) -> dict[str, object]:
        """Train to the last update and return the result, which is also written to the run's folder.

        Args:
            on_update: called after every update with the number of updates done.

        Raises:
            Fenced: if a newer trainer has taken over.
            Stalled: if the queue is unavailable, or no rollout arrives, for too long.
            StoppedByGuard: if a signal of reward hacking ended the run; policy and result are written.
            NotFinite: if losses, gradients or weights are not finite; the last checkpoint stays.
            NothingToTrain: if every task of some updates in a row was a dead letter.
        """
        config = self._config
        self._take_over(QueueRetry(config.queue, lambda what: report_waiting(config, what)))
        incarnation = self._incarnation.number
        records = TaskRecords.open(config.folder, self._progress.ledger, incarnation=incarnation)
        with Tracker(
            "ppo",
            config.folder,
            total=config.ppo.updates,
            first_step=self._progress.update,
            incarnation=incarnation,
            logs=open_logs("ppo", config, first_step=self._progress.update),
            metrics=self._metrics,
            on_phase=self._trace.phase,
        ) as tracker:
            collector = Collector(
                self._queue,
                records=records,
                lineage=self._incarnation.lineage,
                section=config.queue,
                on_wait=tracker.waiting_for,
                metrics=self._metrics,
                deterministic=config.deterministic,
            )
            try:
                records.events.begun(self._progress.update, config.ppo)
                self._leader.check_weights()
                self._trace.begin(self._version)
                self._publish(tracker)
                self._send(collector)
                while self._progress.update < config.ppo.updates and self._monitor.stopped_by is None:
                    self._one_update(collector, records.journal, tracker)
                    if on_update is not None:
                        on_update(self._progress.update)
                self._commit(collector, tracker)
                if self._monitor.stopped_by is not None:
                    self._roll_back(self._monitor.stopped_by.update, tracker)
                return self._finish(tracker)
            finally:
                self._trace.end()
                records.close()
                self._evaluation.close()

    def close(self) -> None:
        """End the other ranks."""
        self._leader.stop()

    def _take_over(self, retry: QueueRetry) -> None:
        checkpoint = self._incarnation.claim(retry)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._monitor.resume(checkpoint and checkpoint.state.get("guard"), update=self._progress.update)
        self._incarnation.begin(self._progress.update)
        if self._metrics is not None:
            self._metrics.incarnation.set(self._incarnation.number)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._progress = TrainingProgress.from_checkpoint(checkpoint)
        self._leader.load(checkpoint)
        self._evaluation.load_state(checkpoint.state)
        self._parent = checkpoint.version
        self._checkpoint_update = self._progress.update
        if checkpoint.state.get("config_hash") != config_hash("ppo", self._config):
            logger.warning("checkpoint %s was written with different settings", checkpoint.version)

    def _roll_back(self, stopped_at: int, tracker: Tracker) -> None:
        """Return to the newest weights whose own answers passed the guard, as a new incarnation."""
        seconds = self._progress.seconds
        checkpoint = self._incarnation.claim_again(
            QueueRetry(self._config.queue, tracker.waiting_for),
            newest=stopped_at - 2 - self._config.ppo.max_staleness,
        )
        if checkpoint is not None:
            self._resume(checkpoint)
        else:
            self._progress = TrainingProgress()
            self._parent = None
            self._leader.load(None)
            self._evaluation.best = None
        self._progress.seconds = seconds
        self._incarnation.begin(self._progress.update)
        self._publish(tracker)

    @property
    def _version(self) -> WeightVersion:
        return self._incarnation.version(self._progress.update)

    def _publish(self, tracker: Tracker) -> None:
        tracker.phase("publish")
        publish.publish(
            self._store,
            self._version,
            write=self._leader.write_shards,
            parent=self._parent,
            lineage=self._incarnation.lineage,
            # A rollout under way may have been begun with weights as old as staleness allows.
            keep=max(self._config.weights.keep, self._config.ppo.max_staleness + 1),
            adapter=self.models.adapter,
            probe=self._leader.probe(),
        )
        self._parent = self._version
        if self._metrics is not None:
            self._metrics.update.set(self._progress.update)

    def _send(self, collector: Collector, *, without_signal: int = 0) -> None:
        """Open as many tasks as staleness allows; the first time also those that the checkpoint left open."""
        section = self._config.ppo
        new = self._progress.open_new_tasks(section, without_signal=without_signal)
        task_ids = new if self._sent_open_tasks else self._progress.open_tasks()
        self._sent_open_tasks = True
        collector.send(
            self._prompts.tasks(task_ids, min_version=self._version),
            update=self._progress.update,
            max_staleness=section.max_staleness,
        )

    def _one_update(self, collector: Collector, journal: Journal, tracker: Tracker) -> None:
        update = self._progress.update
        tracker.phase("wait")
        self._trace.begin(self._incarnation.version(update + 1))
        log.bind(incarnation=self._incarnation.number, update=update + 1)
        entries = collector.wait(
            size=self._config.ppo.tasks_per_update, dynamic=self._dynamic_sampling(collector)
        )
        aside = collector.set_aside
        figures = self._learn(entries, tracker)
        self._trace.trained(entries)
        self._commit(collector, tracker)
        figures |= update_metrics.staleness(entries, update=update, metrics=self._metrics)
        # The journal first, the queue last: an entry is deleted only when its outcome is on disk.
        journal.append(entries, update=update)
        journal.append(aside, event=EVENT, update=update)
        self._settle(entries)
        if self._config.ppo.dynamic_sampling:
            self._settle_without_signal(aside)
            figures |= update_metrics.sampling(entries, aside)
        self._progress.update += 1
        if self._monitor.stopped_by is not None:
            self._record(figures, collector, tracker)
            return
        self._publish(tracker)
        # Workers continue to generate while this batch is written down.
        self._send(collector)
        collector.settled([*entries, *aside], checkpoint_update=self._checkpoint_update)
        figures |= self._evaluation.after(
            self._version,
            on_phase=tracker.phase,
            score_unit=self._learner.score_unit,
            missing_eos_penalty=self._learner.missing_eos_penalty,
            is_contradicted=self._monitor.is_contradicted(figures),
        )
        self._maybe_checkpoint(collector, tracker)
        self._record(figures, collector, tracker)

    def _learn(self, entries: Sequence[OutcomeEntry], tracker: Tracker) -> dict[str, float]:
        """Train on the rollouts of a batch and return its figures; a batch of dead tasks changes nothing."""
        tracker.phase("prepare")
        update = self._progress.update
        rollouts = batch.from_outcomes(
            [entry.outcome for entry in entries], self.models.device, version=self._version
        )
        if rollouts is None:
            self._note_empty_update(entries)
            return {"tokens": 0.0, "kl_coefficient": self._learner.kl_coefficient(update)}
        self._empty_updates = 0
        self._tokens_read = sum(len(sequence.token_ids) for sequence in rollouts.sequences)
        figures = self._leader.learn(rollouts, update=update, on_phase=tracker.phase)
        return figures | self._monitor.observe(rollouts, figures, update=update + 1)

    def _note_empty_update(self, entries: Sequence[OutcomeEntry]) -> None:
        """Log an update whose tasks are all dead, and end the run after some of them in a row."""
        self._empty_updates += 1
        letters = [entry.outcome.result for entry in entries if isinstance(entry.outcome.result, DeadLetter)]
        reasons = Counter(letter.reason for letter in letters).most_common()
        example = next(letter for letter in letters if letter.reason == reasons[0][0])
        message = (
            f"every task of update {self._progress.update + 1} is a dead letter, with nothing to train on "
            f"({', '.join(f'{reason} {count} times' for reason, count in reasons)}), for example: "
            f"{example.detail}"
        )
        if self._empty_updates == MAX_EMPTY_UPDATES:
            raise NothingToTrain(
                f"ppo: {message}. The same was true of the {MAX_EMPTY_UPDATES - 1} updates before"
            )
        logger.error("%s", message)

    def _settle(self, entries: Sequence[OutcomeEntry]) -> None:
        for entry in entries:
            outcome = entry.outcome.result
            dead_reason = outcome.reason if isinstance(outcome, DeadLetter) else None
            self._progress.ledger.settle(entry.outcome.task.task_id, dead_reason=dead_reason)
            if self._metrics is not None:
                event = "trained" if dead_reason is None else "dead_letter"
                self._metrics.tasks.labels(event=event).inc()
                if dead_reason is not None:
                    self._metrics.dead_letters.labels(reason=dead_reason).inc()

    def _dynamic_sampling(self, collector: Collector) -> DynamicSampling | None:
        """Return how this update treats groups without signal; None without `ppo.dynamic_sampling`."""
        section = self._config.ppo
        if not section.dynamic_sampling:
            return None
        opened = 0

        def open_tasks(number: int) -> None:
            nonlocal opened
            if number > opened:
                self._send(collector, without_signal=number)
                opened = number

        penalty = self._learner.missing_eos_penalty
        check = SignalCheck(
            section.model_copy(update={"missing_eos_penalty": penalty}),
            max_new_tokens=self._config.sampling.max_new_tokens,
        )
        return DynamicSampling(section.extra_tasks, check, open_tasks)

    def _settle_without_signal(self, entries: Sequence[OutcomeEntry]) -> None:
        """Settle what dynamic sampling set aside."""
        section = self._config.ppo
        for entry in entries:
            self._progress.ledger.settle(entry.outcome.task.task_id, no_signal=True)
            if self._metrics is not None:
                self._metrics.tasks.labels(event=EVENT).inc()
        if len(entries) == section.extra_tasks:
            logger.warning(
                "update %d: %d groups had no signal, as many as ppo.max_extra_batches = %d replaces; any "
                "further ones stayed in the batch",
                *(self._progress.update + 1, len(entries), section.max_extra_batches),
            )

    def _maybe_checkpoint(self, collector: Collector, tracker: Tracker) -> None:
        update = self._progress.update
        due = update % self._config.checkpoint.every_updates == 0 or update == self._config.ppo.updates
        if not due and not self._evaluation.is_best(self._version):
            return
        tracker.phase("checkpoint")
        lineage = self._incarnation.lineage
        state = {
            **self._progress.state(seconds=time.monotonic() - self._begun),
            **self._learner.state(),
            **self._evaluation.state(),
            "lineage": [[ancestor.incarnation, ancestor.resumed_from] for ancestor in lineage],
            "config_hash": config_hash("ppo", self._config),
            "guard": self._monitor.state(),
        }
        if self._config.checkpoint.asynchronous and self._leader.group.size > 1:
            self._leader.begin_save(self._checkpoints, self._version, state)
            return
        self._leader.save(self._checkpoints, self._version, state)
        self._checkpointed(collector)

    def _commit(self, collector: Collector, tracker: Tracker) -> None:
        """Commit the checkpoint that is being written, if there is one, before anything more is settled."""
        if self._leader.pending is not None:
            tracker.phase("checkpoint")
            self._leader.commit()
            self._checkpointed(collector)

    def _checkpointed(self, collector: Collector) -> None:
        """Delete what the checkpoint of this update replaces: older ones, and outcomes in the queue."""
        # The guard judges the newest checkpoint by its own answers, one update later: the one before is
        # kept in case it fails.
        keep = max(self._config.checkpoint.keep, 2 if self._config.guard.action == "stop" else 1)
        self._checkpoints.prune(
            keep=keep, lineage=self._incarnation.lineage, protected=self._evaluation.kept()
        )
        self._checkpoint_update = self._progress.update
        collector.checkpointed(self._progress.update)

    def _record(self, figures: dict[str, float], collector: Collector, tracker: Tracker) -> None:
        update = self._progress.update
        figures |= update_metrics.times(tracker.seconds_per_phase(), tokens=figures["tokens"])
        figures["update"] = float(update)
        figures |= update_metrics.queue_sizes(collector.stats(), self._metrics)
        if self._metrics is not None:
            self._metrics.tokens.inc(figures["tokens"])
            if self._utilization is not None and (seconds := figures.get("seconds_train")):
                self._metrics.mfu.set(self._utilization.ratio(tokens=self._tokens_read, seconds=seconds))
        tracker.record(update, figures)
        log_update(logger, update, self._config.ppo.updates, figures)

    def _finish(self, tracker: Tracker) -> dict[str, object]:
        """Write the trained policy and the result, unless a newer trainer will do it."""
        self.models.check_ended()
        self._incarnation.confirm()
        self._leader.save_model(self._config.folder.policy_model)
        self._leader.save_average(self._config.folder.average_policy_model)
        final = result.summarise(
            self._config,
            progress=self._progress,
            lineage=self._incarnation.lineage,
            seconds=self._progress.seconds + time.monotonic() - self._begun,
        )
        final |= publish.save_best(
            self._config,
            self._evaluation.best,
            self._checkpoints,
            write=self._leader.save_model,
        )
        final |= self._monitor.result(updates=self._progress.update)
        durable.write_json(self._config.folder.result("ppo"), final)
        tracker.phase("done")
        if self._monitor.stopped_by is not None:
            raise StoppedByGuard(str(final["stopped_by_guard"]))
        return final
