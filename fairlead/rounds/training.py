"""The training stages of a round, as processes; while one runs, processes for the next step start on standby.

Fine-tuning and reward models train with one thread, so a core is free for the imports of what follows. PPO
leaves none.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from fairlead import inputs
from fairlead.config import RunConfig
from fairlead.errors import FairleadError, ProcessFailed, StoppedByGuard
from fairlead.local import run as local_run
from fairlead.local import serving
from fairlead.local.restart_policy import EXIT_GUARDED
from fairlead.local.standby import Standby
from fairlead.rounds.configuration import round_config

_SIGNALLED = 128


class StageStopped(FairleadError):
    """A signal stopped a stage."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        """The exit code of a process that the signal ends."""
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Training:
    """Runs the training stages."""

    console: Console
    """Shows the progress of a stage."""
    standby: Standby
    """Processes that may run a stage or a service."""

    def sft(self, config: RunConfig) -> None:
        """Fine-tune; answers are generated next, and the first round's reward model and PPO follow.

        Raises:
            StageStopped: by a signal.
            ProcessFailed: the stage failed.
        """
        serving.prepare(config, 1, self.standby)
        self._prepare_round(round_config(config, 0))
        self.stage(config, "sft")

    def reward_model(self, config: RunConfig) -> None:
        """Train a reward model; the gate and PPO follow.

        One that was trained on other rankings, before more were given, is trained again.

        Raises:
            StageStopped, ProcessFailed: as `sft`.
        """
        self._prepare_round(config)
        outdated = local_run.is_finished(config, "reward_model") and inputs.differences(
            "reward_model", config, inputs.collect("reward_model", config)
        )
        self.stage(config, "reward_model", force=bool(outdated))

    def ppo(self, config: RunConfig) -> None:
        """Run PPO.

        Raises:
            StageStopped, ProcessFailed: as `sft`.
            StoppedByGuard: by a guard.
        """
        self.stage(config, "ppo")

    def _prepare_round(self, config: RunConfig) -> None:
        local_run.prepare(config, ("reward_model", "ppo"), self.standby)
        serving.prepare(config, 1, self.standby)

    def stage(self, config: RunConfig, stage: str, *, force: bool = False) -> None:
        """Run a stage to its end; nothing is prepared to follow it.

        Args:
            config: the run.
            stage: `sft`, `reward_model` or `ppo`.
            force: repeat a finished stage.

        Raises:
            StageStopped, ProcessFailed, StoppedByGuard: as the methods above.
        """
        outcome = local_run.run_stage(config, stage, console=self.console, force=force, standby=self.standby)
        if outcome.code >= _SIGNALLED:
            raise StageStopped(outcome.message, outcome.code)
        if outcome.code == EXIT_GUARDED:
            raise StoppedByGuard(outcome.message)
        if outcome.code:
            raise ProcessFailed(outcome.message)
