"""The layout of a run's folder: the only place that defines the names in `runs/<name>/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in the folder of one run."""

    root: Path
    """The folder, `runs/<name>`."""

    @property
    def config(self) -> Path:
        """The configuration that was used, as TOML without secrets."""
        return self.root / "config.toml"

    @property
    def run_id(self) -> Path:
        """Random id of the run, by which Redis distinguishes runs of one name."""
        return self.root / "run_id"

    @property
    def logs(self) -> Path:
        """Folder with one log per process."""
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        """JSON object of running processes: name → process id."""
        return self.root / "processes.json"

    @property
    def supervisor(self) -> Path:
        """JSON object with the state of the supervisor's processes and how the run ended; replaced
        atomically.
        """
        return self.root / "supervisor.json"

    @property
    def targets(self) -> Path:
        """Where Prometheus finds the processes that are alive, in its format for files of targets."""
        return self.root / "targets.json"

    @property
    def feedback_targets(self) -> Path:
        """The same for the feedback service that `fairlead iterate` has started."""
        return self.root / "feedback_targets.json"

    @property
    def lock(self) -> Path:
        """Lock file of the run's only supervisor; contains its process id."""
        return self.root / "supervisor.lock"

    @property
    def sft_model(self) -> Path:
        """The fine-tuned model and its tokenizer, in the format of `save_pretrained`."""
        return self.root / "sft"

    @property
    def reward_model(self) -> Path:
        """The reward model and its tokenizer, in the format of `save_pretrained`."""
        return self.root / "reward_model"

    @property
    def preference_model(self) -> Path:
        """The policy that the preference stage trained, in the format of `save_pretrained`."""
        return self.root / "preference"

    @property
    def reference_logprobs(self) -> Path:
        """Log-probs of the preference stage's reference, in files named by what they are of."""
        return self.root / "preference_reference"

    @property
    def weights(self) -> Path:
        """The weight store."""
        return self.root / "weights"

    @property
    def weight_caches(self) -> Path:
        """Weights that policy replicas on this machine have fetched over gRPC, in one folder per replica."""
        return self.root / "weight_caches"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints, and the files that claim incarnations."""
        return self.root / "checkpoints"

    @property
    def policy_model(self) -> Path:
        """The trained policy, in the format of `save_pretrained`; written when PPO ends."""
        return self.root / "policy"

    @property
    def average_policy_model(self) -> Path:
        """The average of the policy's weights; written when PPO ends, with `ppo.ema_decay`."""
        return self.root / "policy_ema"

    @property
    def best_policy_model(self) -> Path:
        """The policy that scored best on held-out prompts; written when PPO ends, if it was evaluated."""
        return self.root / "policy_best"

    @property
    def ledger(self) -> Path:
        """The outcome of every task, one JSON object per line."""
        return self.root / "ledger.jsonl"

    @property
    def events(self) -> Path:
        """Everything that trainers did to the queue, one JSON object per line, for `fairlead audit`."""
        return self.root / "events.jsonl"

    @property
    def progress(self) -> Path:
        """JSON object with the progress of the running stage; replaced atomically."""
        return self.root / "progress.json"

    @property
    def phases(self) -> Path:
        """The phases of every stage with their times, one JSON object per line."""
        return self.root / "phases.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def redis(self) -> Path:
        """The data of the embedded Valkey."""
        return self.root / "redis"

    @property
    def report_html(self) -> Path:
        """The report for people, a self-contained HTML page."""
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.root / "report.json"

    @property
    def evaluation(self) -> Path:
        """Folder of the card of `fairlead evaluate`, with all answers."""
        return self.root / "evaluation"

    def metrics(self, stage: str) -> Path:
        """Return the metrics file of a stage (`sft`, `reward_model`, `preference`, `ppo`), one JSON object
        per line.
        """
        return self.root / f"metrics_{stage}.jsonl"

    @property
    def rollout_samples(self) -> Path:
        """Some answers of every update of PPO with their scores, one JSON object per line."""
        return self.root / "samples_ppo.jsonl"

    @property
    def digests(self) -> Path:
        """Cache of the digests of data and models; may be deleted at any time."""
        return self.root / "digests.json"

    def inputs(self, stage: str) -> Path:
        """Return the JSON file with the settings of a stage, and the digests of its data and models."""
        return self.root / f"inputs_{stage}.json"

    def stage_checkpoints(self, stage: str) -> Path:
        """Return the folder of the checkpoints of `sft`, `reward_model` or `preference`."""
        return self.root / f"checkpoints_{stage}"

    def result(self, stage: str) -> Path:
        """Return the JSON file with the final figures of a stage."""
        return self.root / f"result_{stage}.json"

    def log(self, process: str) -> Path:
        """Return the log of one process."""
        return self.logs / f"{process}.log"
