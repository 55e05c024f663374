"""The model card of an exported folder: data, metrics, settings, and code that loads the model.

It contains only what the run's folder shows. A data file that changed after training is marked; paths are
written as in the run's configuration. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fairlead import __version__
from fairlead.config import RunConfig, RunFolder
from fairlead.data import sources
from fairlead.data.hub import may_be_hub_id
from fairlead.data.records import heldout_names
from fairlead.evaluation import card as evaluation_card
from fairlead.report.run_record import RunRecord
from trainer import lineage

ModelKind = Literal["policy", "reward model"]

_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "sft": ("epochs", "batch_size", "learning_rate", "max_sequence_tokens", "dtype", "lora.rank"),
    "reward_model": (
        "epochs",
        "batch_size",
        "learning_rate",
        "ensemble_size",
        "max_sequence_tokens",
        "dtype",
        "lora.rank",
    ),
    "preference": ("epochs", "batch_size", "learning_rate", "loss", "rankings", "beta", "dtype", "lora.rank"),
    "ppo": (
        *(
            "updates",
            "batch_size",
            "num_samples",
            "mini_batch_size",
            "epochs",
            "learning_rate",
            "critic_learning_rate",
        ),
        *("learning_rate_schedule", "warmup_updates"),
        *(
            "kl_coefficient",
            "kl_control",
            "kl_coefficient_end",
            "clip_range",
            "gae_lambda",
            "missing_eos_penalty",
            "max_staleness",
        ),
        *("group_scale", "loss_aggregation", "kl_in"),
        *("estimator", "loss", "critic_init", "ptx_coefficient", "dtype", "lora.rank", "lora.alpha"),
    ),
    "sampling": ("temperature", "top_p", "top_k", "max_new_tokens"),
}
_USES = {
    "demonstrations": "fine-tuning",
    "thumbs": "preferences (KTO)",
    "preferences": "reward model",
    "prompts": "PPO",
    "sentences": "fine-tuning, reward model, PPO",
}


@dataclass(frozen=True, slots=True)
class DataRow:
    """One source of data."""

    use: str
    """Stages that read it."""
    name: str
    """Name in the run's configuration."""
    size: str
    """Size in bytes, for a file that exists."""
    sha256: str
    """Hash of the file now, and whether it changed after training."""


@dataclass(frozen=True, slots=True)
class Card:
    """The contents of the template."""

    kind: ModelKind
    """Kind of the model in the folder."""
    library: str
    """Library that loads it: `transformers` or `peft`."""
    title: str
    """Title of the card."""
    lead: str
    """What the model is, in one or two sentences."""
    base_id: str
    """Hub id of the base model; empty if it is not from the hub."""
    code: str
    """Python code that loads and uses it, to be run in its folder."""
    code_note: str
    """A note about the code; may be empty."""
    data: tuple[DataRow, ...]
    """Sources of data."""
    counts: tuple[str, ...]
    """Amount of data that each stage learned from."""
    metrics: tuple[tuple[str, str], ...]
    """Metrics by name."""
    settings: tuple[tuple[str, str], ...]
    """Training settings by name."""
    lineage: tuple[str, ...]
    """Run, weights, incarnations, version of the software."""


def write(folder: Path, card: Card) -> None:
    """Write the card as `README.md`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("card.md.j2").render(card=card)
    (folder / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def base_of(config: RunConfig) -> tuple[str, str]:
    """Return a description of the base model, and its hub id, empty without one."""
    path = config.model.path or config.policy.path
    if not path:
        scratch = config.model.scratch
        return f"a Llama from scratch ({scratch.num_layers} layers, width {scratch.hidden_size})", ""
    if Path(path).expanduser().is_dir() or path.startswith((".", "/", "~")):
        return f"`{Path(path).name}`, a local folder", ""
    return f"[{path}](https://huggingface.co/{path})", path


def data_rows(config: RunConfig, folder: RunFolder, kinds: Sequence[str]) -> tuple[DataRow, ...]:
    """Return a row for each source of data of some kinds, such as `prompts`."""
    trained = max((path.stat().st_mtime for path in _results(folder)), default=0.0)
    rows = []
    for kind in kinds:
        for name in sources.names(config, kind):
            rows.append(_row(_USES[kind], name, config.data_path(name), trained))
        for name in heldout_names(config, kind):
            rows.append(_row(f"{_USES[kind]}, held out", name, config.data_path(name), trained))
    return tuple(rows)


def counts(record: RunRecord, kind: ModelKind) -> tuple[str, ...]:
    """Return the amount of data that each stage learned from, according to its result."""
    lines = []
    if "demonstrations" in record.sft:
        held = record.sft.get("heldout_demonstrations", 0)
        lines.append(f"Fine-tuning: {record.sft['demonstrations']:,} demonstrations, {held:,} held out")
    if "comparisons" in record.reward_model:
        held = record.reward_model.get("heldout_comparisons", 0)
        lines.append(
            f"Reward model: {record.reward_model['comparisons']:,} comparisons of "
            f"{record.reward_model.get('prompts', 0):,} prompts, {held:,} comparisons held out"
        )
    if kind == "policy" and "episodes" in record.ppo:
        lines.append(f"PPO: {record.ppo['episodes']:,} answers to prompts")
    return tuple(lines)


def metrics(record: RunRecord, kind: ModelKind) -> tuple[tuple[str, str], ...]:
    """Return the metrics of the stages; those of PPO only for a policy."""
    found: list[tuple[str, object]] = [("fine-tuning: held-out loss", record.sft.get("heldout_loss"))]
    rewards = record.reward_model
    found.append(("reward model: accuracy on held-out comparisons", rewards.get("accuracy")))
    if isinstance(interval := rewards.get("accuracy_interval"), list):
        found.append(
            ("reward model: 95% interval of the accuracy", " – ".join(f"{end:.3f}" for end in interval))
        )
    found.append(("reward model: calibration error (ECE)", rewards.get("ece")))
    found.append(("reward model: calibration error with its temperature", rewards.get("ece_calibrated")))
    for name, row in rewards.get("baselines", {}).items():
        found.append((f"baseline, {name.replace('_', ' ')}: accuracy", row.get("accuracy")))
    if kind == "policy":
        found += [
            ("PPO: mean score in the first update", record.ppo.get("proxy_first")),
            ("PPO: mean score in the last update", record.ppo.get("proxy_last")),
            ("PPO: KL to the reference, nats per answer", record.ppo.get("kl")),
            ("PPO: mean score on held-out prompts of the best update", record.ppo.get("best_eval_reward")),
            ("PPO: largest log-prob difference of sampler and trainer", record.ppo.get("mismatch_max")),
            *((name.replace("_", " "), value) for name, value in record.queue.items()),
        ]
    rows = [(name, _number(value)) for name, value in found if value is not None]
    for name, text in evaluation_card.summary(record.card):
        if name.startswith("bias:") == (kind == "reward model"):
            rows.append((name, text))
    return tuple(rows)


def settings(config: RunConfig, record: RunRecord, kind: ModelKind) -> tuple[tuple[str, str], ...]:
    """Return the settings that determine the result, for the stages that were run."""
    stages = ["sft"] if record.sft else []
    stages += ["reward_model"] if record.reward_model else []
    stages += ["preference"] if record.preference and kind == "policy" else []
    stages += ["ppo", "sampling"] if kind == "policy" else []
    rows = [("seed", str(config.seed))]
    for stage in stages:
        for field in _SETTINGS[stage]:
            value: Any = getattr(config, stage)
            if field.startswith("lora.") and not value.lora.rank:
                continue
            for part in field.split("."):
                value = getattr(value, part)
            rows.append((f"{stage}.{field}", str(value)))
    return tuple(rows)


def origin(folder: RunFolder, record: RunRecord, kind: ModelKind) -> Iterator[str]:
    """Yield the run, the incarnations of its trainer, alerts of its guard, and the version of Fairlead."""
    yield f"Run `{record.name}`, exported by Fairlead {__version__}"
    if kind == "policy":
        for ancestor in lineage.read(folder.checkpoints):
            yield f"Incarnation {ancestor.incarnation} of the trainer began at update {ancestor.resumed_from}"
        if "stopped_by_guard" in record.ppo:
            yield f"Stopped by a guard: {record.ppo['stopped_by_guard']}"
        alerts = len(record.ppo.get("guards", ()))
        yield f"Alerts of the guard against reward hacking: {alerts}"


def _results(folder: RunFolder) -> list[Path]:
    paths = [folder.result(stage) for stage in ("sft", "reward_model", "preference", "ppo")]
    return [path for path in paths if path.is_file()]


def _row(use: str, name: str, path: Path, trained: float) -> DataRow:
    # Do not publish the folders of this machine.
    shown = Path(name).name if Path(name).is_absolute() else name
    if not path.is_file():
        hub = may_be_hub_id(name.partition("?")[0]) and not path.is_dir()
        what = "dataset from the hub" if hub else "folder" if path.is_dir() else "missing at export"
        return DataRow(use, shown, "", what)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed = ", changed after training" if trained and path.stat().st_mtime > trained else ""
    return DataRow(use, shown, f"{path.stat().st_size:,}", f"`{digest}`{changed}")


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-2 or abs(value) >= 1e4 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
