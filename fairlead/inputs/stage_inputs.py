"""The inputs of a stage, `inputs_<stage>.json`: written when a stage starts, compared when it starts again.

Settings that change only speed, memory or the length of PPO are left out. A source on the hub counts by its
name, and by its commit where a model is in the hub's cache: nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fairlead.config import RunConfig
from fairlead.config.data import DataSection
from fairlead.config.saving import replace_text
from fairlead.data import sources
from fairlead.inputs.digests import Content, Digests

logger = logging.getLogger(__name__)

_SPEED = ("device", "threads", "max_micro_batch_tokens", "gradient_checkpointing", "compile", "offload")
"""Keys of a training section that change speed and memory only."""
_SERVING = ("dtype", "max_sequence_tokens")
_SCORING = (
    "engine",
    "function",
    "combined",
    "append_eos",
    "chat_template",
    "ensemble",
    "ensemble_std_weight",
    *_SERVING,
)
"""Keys of the model services that change what PPO trains on, as far as the version has them."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    "sft": ("demonstrations",),
    "reward_model": ("preferences", "demonstrations"),
    "preference": ("preferences",),
    "ppo": ("prompts",),
}
_LIVE = "fresh_rankings"
"""Data that labelers append to during a run."""
_SOURCES = ("demonstrations", "preferences", "thumbs", "prompts", "sentences", _LIVE)
"""Words in the names of the keys of `[data]` that name sources; the other keys are settings."""
_READ_BY = {"tie_margin": ("reward_model", "preference")}
"""Settings of `[data]` that only some stages read."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files that are read instead of the tokenizer in a GGUF file, if the first is in its folder."""
_LENGTHS = ("updates", "schedule_updates", "kl_schedule_updates")
"""Keys of `[ppo]` of which only the length of each schedule matters to the result."""
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Source:
    """A file, folder or name of the hub that a stage reads."""

    name: str
    """As the configuration names it."""
    digest: str
    """Digest of its contents, or the commit of a model of the hub; empty if not known."""
    size_bytes: int = 0
    """Size of its files; 0 if not known."""


@dataclass(frozen=True, slots=True)
class StageInputs:
    """Everything that determines the result of a stage."""

    settings: Mapping[str, object]
    """Dotted key → value."""
    sources: Mapping[str, tuple[Source, ...]]
    """Dotted key → what it names."""

    @property
    def digest(self) -> str:
        """One digest of all inputs; where a source is does not matter, only its contents."""
        contents = {
            key: [source.digest or source.name for source in named] for key, named in self.sources.items()
        }
        text = json.dumps([self.settings, contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """Return the JSON form."""
        named = {key: [asdict(source) for source in found] for key, found in self.sources.items()}
        return {"settings": dict(self.settings), "sources": named}

    @classmethod
    def from_json(cls, text: str) -> StageInputs:
        """Read the file of a stage, which has what `to_json` returned in `inputs`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if it has another form.
        """
        value = json.loads(text)["inputs"]
        named = {
            str(key): tuple(
                Source(str(one["name"]), str(one["digest"]), int(one["size_bytes"])) for one in found
            )
            for key, found in value["sources"].items()
        }
        return cls(dict(value["settings"]), named)


def collect(stage: str, config: RunConfig) -> StageInputs:
    """Return the present inputs of a stage. What cannot be read has no digest; the stage itself reports it.

    Args:
        stage: `sft`, `reward_model`, `preference` or `ppo`.
        config: the run.
    """
    digests = Digests(config.folder.digests)
    named = dict(_data(stage, config, digests)) | dict(_models(stage, config, digests))
    if config.folder.root.is_dir():
        digests.save()
    # The same types as after JSON, so that both compare equal.
    settings = json.loads(json.dumps(dict(_settings(stage, config))))
    return StageInputs(settings, named)


def read(stage: str, config: RunConfig) -> StageInputs | None:
    """Return the inputs that the stage last started with; None if they were not recorded."""
    try:
        return StageInputs.from_json(config.folder.inputs(stage).read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def changes(before: StageInputs, now: StageInputs) -> list[str]:
    """Return one line for every input that differs, with its key; empty if both give the same result."""
    found = []
    for key in sorted(before.settings.keys() & now.settings.keys()):
        old, new = before.settings[key], now.settings[key]
        if old != new:
            found.append(f"{key}: {_shown(old)} before, {_shown(new)} now")
    for key in sorted(before.sources.keys() | now.sources.keys()):
        found += _source_changes(key, before.sources.get(key, ()), now.sources.get(key, ()))
    return found


def differences(stage: str, config: RunConfig, now: StageInputs) -> list[str]:
    """Return what has changed since the stage last started; empty if it never did or nothing has."""
    before = read(stage, config)
    return changes(before, now) if before is not None else []


def warn_if_continued(stage: str, config: RunConfig, changed: Sequence[str]) -> None:
    """Log a warning with what has changed since the last start, if the stage has a checkpoint.

    Only PPO is known to continue from it. Another stage finds out when it has read its data: the checkpoint
    may be older than the last start, and made from the inputs of now.
    """
    if not changed or not has_checkpoints(stage, config):
        return
    if stage == "ppo":
        what = (
            "ppo continues a run that began with other inputs, and its result is made from both. To start "
            f"over, use another name (`--set name=...`) or remove {config.folder.root}"
        )
    else:
        what = (
            f"the inputs of {stage.replace('_', '-')} have changed since its last start; it does not "
            "continue from a checkpoint of other inputs"
        )
    logger.warning("%s. Changed: %s", what, "; ".join(changed))


def record_start(stage: str, config: RunConfig, now: StageInputs) -> None:
    """Write the inputs with which a stage starts; changes since its last start are kept in the same file."""
    path = config.folder.inputs(stage)
    before = read(stage, config)
    history: list[object] = []
    if before is not None and has_checkpoints(stage, config):
        try:
            history = list(json.loads(path.read_text(encoding="utf-8")).get("changes", []))
        except (OSError, ValueError):
            history = []
        if found := changes(before, now):
            history.append({"time": time.time(), "changed": found})
    entry = {"inputs": now.to_json(), "digest": now.digest, "changes": history}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(entry, indent=1) + "\n")


def has_checkpoints(stage: str, config: RunConfig) -> bool:
    """Return whether the stage has something to continue from."""
    folder = config.folder.checkpoints if stage == "ppo" else config.folder.stage_checkpoints(stage)
    return any((path / "manifest.json").exists() for path in folder.glob("*-*"))


def _settings(stage: str, config: RunConfig) -> Iterator[tuple[str, object]]:
    yield "seed", config.seed
    data = config.data.model_dump(mode="json")
    kept = [name for name in data if not any(word in name for word in _SOURCES)]
    yield from _flat("data", {name: data[name] for name in kept if stage in _READ_BY.get(name, (stage,))})
    left_out = {*_SPEED, "path", *(_LENGTHS if stage == "ppo" else ())}
    yield from _flat(stage, getattr(config, stage).model_dump(mode="json", exclude=left_out))
    if stage == "sft":
        left_out = {"path", "chat_template", "template_arguments"}
        yield from _flat("model", config.model.model_dump(mode="json", exclude=left_out))
    if _renders(stage, config):
        yield "model.template_arguments", dict(config.model.template_arguments)
    if stage == "ppo":
        if config.ppo.learning_rate_schedule != "constant":
            yield "ppo.schedule_updates", config.ppo.num_schedule_updates
        if config.ppo.kl_control == "linear":
            yield "ppo.kl_schedule_updates", config.ppo.num_kl_schedule_updates
        yield from _flat("sampling", config.sampling.model_dump(mode="json"))
        for service, keys in (("policy", _SERVING), ("reference", _SERVING), ("reward", _SCORING)):
            values = getattr(config, service).model_dump(mode="json")
            yield from _flat(service, {key: values[key] for key in keys if key in values})


def _renders(stage: str, config: RunConfig) -> bool:
    """Return whether the stage starts from a model that gets the chat template of `[model]`."""
    start = {
        "reward_model": config.reward_model.path,
        "preference": config.preference.path,
        "ppo": config.policy.path,
    }
    return stage == "sft" or bool(start[stage])


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def _data(stage: str, config: RunConfig, digests: Digests) -> Iterator[tuple[str, tuple[Source, ...]]]:
    kinds = list(_KINDS[stage])
    if stage == "preference":
        kinds = ["thumbs" if config.reads_thumbs else "preferences"]
    if stage == "ppo" and config.ppo.ptx_coefficient:
        kinds.append("demonstrations")
    fields = [name for name in DataSection.model_fields if any(kind in name for kind in kinds)]
    if not all(sources.names(config, kind) for kind in kinds):
        fields.append("sentences")
    for field in fields:
        names = sources.names(config, field) if field != _LIVE else ()
        if names:
            found = (
                Source(name, *_content(digests, config.data_path(name.partition("?")[0]))) for name in names
            )
            yield f"data.{field}", tuple(found)


def _models(stage: str, config: RunConfig, digests: Digests) -> Iterator[tuple[str, tuple[Source, ...]]]:
    sft = str(config.folder.sft_model)
    named: dict[str, str] = {}
    if stage == "sft":
        named = {"model.path": config.model.path}
    elif stage in ("reward_model", "preference"):
        named = {f"{stage}.path": getattr(config, stage).path or sft}
    else:
        named = {"policy.path": config.policy.path or sft, "reference.path": config.reference.path or sft}
        # A watched folder changes by intention; Triton's models are not here.
        if config.reward.engine == "local" and not config.reward.watch:
            named["reward.path"] = config.reward.path or str(config.folder.reward_model)
        functions = {"reward": config.reward.function}
        for name, term in config.reward.combined.terms.items():
            functions[f"reward.combined.terms.{name}"] = term.function
            named[f"reward.combined.terms.{name}.path"] = term.path
        for key, function in functions.items():
            code = function.rpartition(":")[0]
            if code.endswith(".py"):
                named[f"{key}.function"] = str(config.data_path(code))
    for key, path in named.items():
        if path:
            yield key, tuple(_model(path, digests))
    if config.model.chat_template and _renders(stage, config):
        file = config.data_path(config.model.chat_template)
        yield "model.chat_template", (Source(config.model.chat_template, *_content(digests, file)),)


def _model(path: str, digests: Digests) -> Iterator[Source]:
    """Yield a model, the tokenizer next to a GGUF file, and the base of an adapter."""
    local = Path(path).expanduser()
    if not local.exists():
        yield Source(path, _commit(path))
        return
    yield Source(path, *_content(digests, local))
    if local.is_file() and (local.parent / _TOKENIZER[0]).is_file():
        for file in (local.parent / name for name in _TOKENIZER):
            if file.is_file():
                yield Source(str(file), *_content(digests, file))
    try:
        adapter = json.loads((local / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(adapter["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if Path(base).expanduser() != local:
        yield from _model(base, digests)


def _content(digests: Digests, path: Path) -> tuple[str, int]:
    try:
        found: Content = digests.of(path)
    except OSError:
        return "", 0
    return found.digest, found.size_bytes


def _commit(model: str) -> str:
    """Return the commit of a model of the hub that is in the hub's cache; empty if it is not."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return ""
    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""


def _source_changes(key: str, before: tuple[Source, ...], now: tuple[Source, ...]) -> list[str]:
    old_names, new_names = (", ".join(one.name for one in named) for named in (before, now))
    if len(before) != len(now):
        return [f"{key}: {old_names or 'nothing'} before, {new_names or 'nothing'} now"]
    found = []
    for old, new in zip(before, now, strict=True):
        if old.digest and new.digest:
            if old.digest != new.digest:
                sizes = f"{old.size_bytes:,} bytes before, {new.size_bytes:,} now"
                where = (
                    f"{new.name} instead of {old.name}, with"
                    if old.name != new.name
                    else f"{new.name} now has"
                )
                found.append(f"{key}: {where} other contents ({sizes})")
        elif old.name != new.name:
            found.append(f"{key}: {old.name} before, {new.name} now")
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
