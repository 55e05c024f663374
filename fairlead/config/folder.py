"""The layout of a run's folder: every name in `runs/<name>/` stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths below the folder of one run."""

    root: Path
    """`runs/<name>`."""

    @property
    def config(self) -> Path:
        """The configuration used, as TOML, without secrets."""
        return self.root / "config.toml"

    @property
    def logs(self) -> Path:
        """A log per process."""
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        """Name → pid of what is running, as JSON."""
        return self.root / "processes.json"

    @property
    def supervisor(self) -> Path:
        """What the supervisor knows of its processes, and how it ended, as JSON; replaced whole."""
        return self.root / "supervisor.json"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor that works on the run; holds its pid."""
        return self.root / "supervisor.lock"

    @property
    def sft_model(self) -> Path:
        """The fine-tuned model and its tokenizer, as `save_pretrained` writes them."""
        return self.root / "sft"

    @property
    def reward_model(self) -> Path:
        """The reward model and its tokenizer, as `save_pretrained` writes them."""
        return self.root / "reward_model"

    @property
    def weights(self) -> Path:
        """The weight store."""
        return self.root / "weights"

    @property
    def weight_caches(self) -> Path:
        """What policy replicas on this machine have fetched over gRPC; a folder for each."""
        return self.root / "weight_caches"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints and the files that claim incarnations."""
        return self.root / "checkpoints"

    @property
    def policy_model(self) -> Path:
        """The trained policy, as `save_pretrained` writes it; there when PPO has ended."""
        return self.root / "policy"

    @property
    def best_policy_model(self) -> Path:
        """The policy that did best on held-out prompts; there when PPO has ended and was evaluated."""
        return self.root / "policy_best"

    @property
    def ledger(self) -> Path:
        """Every outcome of every task, one JSON object a line."""
        return self.root / "ledger.jsonl"

    @property
    def events(self) -> Path:
        """What every trainer did to the queue, one JSON object a line; for an audit."""
        return self.root / "events.jsonl"

    @property
    def progress(self) -> Path:
        """What the running stage does now, as JSON; replaced whole."""
        return self.root / "progress.json"

    @property
    def phases(self) -> Path:
        """What every stage did when, one JSON object a phase."""
        return self.root / "phases.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def redis(self) -> Path:
        """Data of the embedded Valkey."""
        return self.root / "redis"

    @property
    def report_html(self) -> Path:
        """The report for people, self-contained."""
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.root / "report.json"

    def metrics(self, stage: str) -> Path:
        """Metrics of a stage (`sft`, `reward_model`, `ppo`), one JSON object a line."""
        return self.root / f"metrics_{stage}.jsonl"

    @property
    def rollout_samples(self) -> Path:
        """Some answers of every update of PPO with their scores, one JSON object a line."""
        return self.root / "samples_ppo.jsonl"

    def result(self, stage: str) -> Path:
        """Final figures of a stage, as JSON."""
        return self.root / f"result_{stage}.json"

    def log(self, process: str) -> Path:
        """Log of one process."""
        return self.logs / f"{process}.log"
