"""The configuration of one run, and how `load` reads it from a file, the environment and flags.

Precedence: flags > environment (`FAIRLEAD_SECTION__FIELD`) > TOML file > default.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fairlead.config import determinism, groups, retired
from fairlead.config.base import ServerSection, TlsSection
from fairlead.config.data import DataSection, ModelSection
from fairlead.config.feedback import FeedbackSection
from fairlead.config.folder import RunFolder
from fairlead.config.guard import GuardSection
from fairlead.config.http import GatewaySection
from fairlead.config.infrastructure import (
    KeysSection,
    LocalSection,
    ObserveSection,
    QueueSection,
    RanksSection,
    WeightsSection,
)
from fairlead.config.iterate import IterateSection
from fairlead.config.preference import PreferenceSection
from fairlead.config.sampling import EvaluationSection, SamplingSection
from fairlead.config.serving import (
    PolicySection,
    ReferenceSection,
    RewardSection,
    RolloutWorkerSection,
)
from fairlead.config.training import (
    CheckpointSection,
    PpoSection,
    RewardModelSection,
    SftSection,
)
from fairlead.errors import ConfigError

logger = logging.getLogger(__name__)

_CREDENTIALS = re.compile(r"://\S*@")
"""The part of a URL that may contain a password."""


class RunConfig(BaseSettings):
    """The configuration of one run. Each process reads the sections that it needs."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        env_prefix="FAIRLEAD_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the run, used for its folder and its keys in Redis."""
    runs: Path = Path("runs")
    """Folder of all runs, relative to the working directory."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Seed of all random numbers."""
    deterministic: bool = False
    """Make PPO reproducible bit for bit, with any number of workers and through kills and restarts. It is
    synchronous, runs on CPUs only, and is slower, because every sequence is computed in a batch of its own;
    see [docs/reliability.md](reliability.md)."""
    base: Path = Path(".")
    """Folder that the paths in `[data]` are relative to. Default: the folder of the file that was read."""
    model: ModelSection = ModelSection()
    """The base model."""
    data: DataSection = DataSection()
    """The data of all stages."""
    sft: SftSection = SftSection()
    """Supervised fine-tuning."""
    reward_model: RewardModelSection = RewardModelSection()
    """Training of the reward model."""
    preference: PreferenceSection = PreferenceSection()
    """Training on comparisons without a reward model."""
    ppo: PpoSection = PpoSection()
    """Reinforcement learning."""
    guard: GuardSection = GuardSection()
    """Limits for signals of reward hacking."""
    sampling: SamplingSection = SamplingSection()
    """Sampling of rollouts."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation on held-out prompts."""
    server: ServerSection = ServerSection()
    """Limits of all servers."""
    policy: PolicySection = PolicySection()
    """The policy service."""
    reward: RewardSection = RewardSection()
    """The reward service."""
    reference: ReferenceSection = ReferenceSection()
    """The reference service."""
    rollout_worker: RolloutWorkerSection = RolloutWorkerSection()
    """The rollout workers."""
    gateway: GatewaySection = GatewaySection()
    """The HTTP gateway."""
    feedback: FeedbackSection = FeedbackSection()
    """The feedback service."""
    iterate: IterateSection = IterateSection()
    """Rounds with people in the loop."""
    queue: QueueSection = QueueSection()
    """The queue in Redis."""
    weights: WeightsSection = WeightsSection()
    """The weight store."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Checkpoints of PPO."""
    ranks: RanksSection = RanksSection()
    """The ranks of the trainer."""
    observe: ObserveSection = ObserveSection()
    """Logs and metrics."""
    keys: KeysSection = KeysSection()
    """API keys."""
    tls: TlsSection = TlsSection()
    """Certificates."""
    local: LocalSection = LocalSection()
    """The supervisor of a run on one machine."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the values that `load` passes: it has already merged flags, environment and file."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_determinism(self) -> Self:
        if self.deterministic:
            determinism.check(self)
        return self

    @model_validator(mode="after")
    def _check_aliases(self) -> Self:
        taken = {"policy": self.policy.aliases, "reward": (*self.reward.aliases, self.reward.model_name)}
        for section, other in (("policy", "reward"), ("reward", "policy")):
            for name in getattr(self, section).aliases:
                if name == other or name in taken[other]:
                    raise ConfigError(
                        f"{section}.aliases", got=name, allowed=f"names that [{other}] does not have"
                    )
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference.engine != "trainer":
            return self
        if not self.ppo.lora.rank:
            raise ConfigError(
                "reference.engine",
                got="trainer",
                allowed="local or vllm without [ppo.lora]: only a policy with adapters has its reference",
            )
        if self.reference.path not in ("", self.policy.path):
            raise ConfigError(
                "reference.path",
                got=self.reference.path,
                allowed="no path, because reference.engine is 'trainer': the reference is the policy's base",
            )
        return self

    @model_validator(mode="after")
    def _check_overlong_buffer(self) -> Self:
        buffer, limit = self.ppo.overlong_buffer_tokens, self.sampling.max_new_tokens
        if self.ppo.overlong_penalty and buffer > limit:
            raise ConfigError(
                "ppo.overlong_buffer_tokens",
                got=buffer,
                allowed=f"at most sampling.max_new_tokens, which is {limit}",
            )
        return self

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        for name in ("sft", "reward_model", "preference", "ppo"):
            if getattr(self, name).compile and self.ranks.tensor_parallel > 1:
                allowed = "false with ranks.tensor_parallel above 1: torch cannot compile divided matrices"
                raise ConfigError(f"{name}.compile", got=True, allowed=allowed)
        return self

    @model_validator(mode="after")
    def _check_num_samples(self) -> Self:
        groups.check(self)
        return self

    @model_validator(mode="after")
    def _check_reward(self) -> Self:
        section = self.reward
        if (section.engine == "function") != bool(section.function):
            allowed = "module:name or file.py:name together with reward.engine = 'function'"
            raise ConfigError("reward.function", got=section.function or "no function", allowed=allowed)
        if (section.engine == "combined") != bool(section.combined.terms):
            allowed = "tables [reward.combined.terms.NAME] together with reward.engine = 'combined'"
            raise ConfigError("reward.combined.terms", got=list(section.combined.terms), allowed=allowed)
        if section.combined.is_adaptive and self.ppo.dynamic_sampling:
            allowed = (
                "false with reward.combined.multiplier_step above 0: the multiplier follows the mean of all "
                "answers, and groups that are left out would not count"
            )
            raise ConfigError("ppo.dynamic_sampling", got=True, allowed=allowed)
        return self

    @property
    def has_preference_stage(self) -> bool:
        """Whether the run has settings of the preference stage, which is optional."""
        return self.preference != PreferenceSection()

    @property
    def reads_thumbs(self) -> bool:
        """Whether the preference stage learns from `data.thumbs` instead of rankings."""
        return self.preference.loss == "kto" and bool(self.data.thumbs or self.data.heldout_thumbs)

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(self.runs / self.name)

    @property
    def metrics_tls(self) -> TlsSection | None:
        """TLS settings of the metrics ports; None if they are not encrypted."""
        return self.tls if self.observe.metrics_tls else None

    @property
    def weights_path(self) -> Path:
        """The folder of the weight store."""
        return Path(self.weights.path) if self.weights.path else self.folder.weights

    @property
    def feedback_store(self) -> str:
        """The file or the address of the feedback service's store."""
        return self.feedback.store or str(self.folder.root / "feedback.db")

    def server_limits(
        self, service: Literal["policy", "reward", "reference", "weights", "gateway", "feedback"]
    ) -> ServerSection:
        """Return the limits of one service: `[server]`, with the deprecated keys of its own section."""
        section = getattr(self, service)
        own = {name: getattr(section, name, None) for name in ServerSection.model_fields}
        return self.server.model_copy(
            update={name: value for name, value in own.items() if value is not None}
        )

    def data_path(self, path: str) -> Path:
        """Resolve a path of `[data]` against the folder of the run's file."""
        # Unlike `Path.resolve`, it leaves a loop of symbolic links to the one who opens the file.
        return Path(os.path.realpath(self.base / path))


def load(path: Path | None = None, *, overrides: Mapping[str, object] | None = None) -> RunConfig:
    """Read the configuration of a run.

    Args:
        path: the TOML file; None uses only defaults, environment and overrides.
        overrides: flags by dotted key, such as `{"ppo.updates": 10}`. A string that is a TOML
            value is parsed, so `"10"` is a number, unless the key takes text.

    Raises:
        ConfigError: for an unreadable file, an unknown key (names the nearest known one) or an invalid value.
    """
    values: dict[str, Any] = {}
    warnings: list[str] = []
    if path is not None:
        values = _read_toml(path)
        warnings += retired.apply(values)
        values.setdefault("base", str(path.resolve().parent))
    environment = _environment()
    warnings += retired.apply(environment, named=_variable)
    _merge(values, environment)
    flags: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        parsed = _toml_value(value)
        _merge(flags, _nested(key, parsed if isinstance(parsed, str) or not _takes_text(key) else value))
    warnings += retired.apply(flags)
    _merge(values, flags)
    _check_environment()
    for warning in warnings:
        logger.warning(warning)
    if str(values.get("deterministic")).lower() in ("true", "1"):
        determinism.fill(values)
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise _config_error(error) from None


def parse_overrides(flags: Iterable[str]) -> dict[str, object]:
    """Parse `--set section.field=value` flags into the overrides that `load` takes.

    Raises:
        ConfigError: for a flag without `=`.
    """
    values: dict[str, object] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals:
            raise ConfigError("--set", got=flag, allowed="section.field=value")
        values[key.strip()] = value.strip()
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("config", got=str(path), allowed="a TOML file that exists") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config", got=f"{path}: {error}", allowed="a readable TOML file") from error


def _environment() -> dict[str, Any]:
    try:
        return dict(EnvSettingsSource(RunConfig)())
    except SettingsError:
        # The value of FAIRLEAD_QUEUE, a section, is read as JSON.
        sections = {name.rpartition(".")[0] for name in field_names()} - {""}
        wrong = next((name for name in sections if not _is_json(os.environ.get(_variable(name), "{}"))), "")
        raise _not_a_table(_variable(wrong), "") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _toml_value(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _takes_text(key: str) -> bool:
    """Return whether a dotted key takes text; `--set name=2026` is a name that looks like a number."""
    section: type[BaseModel] = RunConfig
    *tables, last = key.split(".")
    for table in tables:
        found = section.model_fields.get(table)
        if found is None or not (
            isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel)
        ):
            return False
        section = found.annotation
    field = section.model_fields.get(last)
    return field is not None and field.annotation in (str, Path, SecretStr, SecretStr | None)


def _nested(key: str, value: object) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(target: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def field_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every section and every setting, without the deprecated ones."""
    for name, field in model.model_fields.items():
        if prefix + name in retired.OVERRIDES:
            continue
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from field_names(field.annotation, f"{prefix}{name}.")


def _nearest(key: str) -> str:
    known = list(field_names())
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    same_section = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    return (
        f"one of {', '.join(same_section)}"
        if same_section
        else "a key of docs/configuration.md or docs/configuration-reference.md"
    )


def _variable(key: str) -> str:
    return f"FAIRLEAD_{key.upper().replace('.', '__')}"


def _check_environment() -> None:
    """Refuse a misspelt FAIRLEAD_SECTION__FIELD, which pydantic-settings would ignore silently."""
    known = {*field_names(), *retired.known()}
    for variable in os.environ:
        if variable.startswith("FAIRLEAD_") and "__" in variable:
            key = variable.removeprefix("FAIRLEAD_").lower().replace("__", ".")
            if key not in known:
                raise ConfigError(variable, got=key, allowed=_nearest(key))


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        shown = _CREDENTIALS.sub("://…@", key)
        return ConfigError(shown, got="an unknown key", allowed=_nearest(key))
    if first["type"] == "model_type":
        return _not_a_table(key, first.get("input"))
    got = first.get("input")
    if "password" in key:
        got = "…"
    elif key.endswith("redis_url") or _CREDENTIALS.search(str(got)):
        # Not quoted: it may contain a password.
        got = "an invalid URL"
    elif isinstance(got, Mapping):
        # A section whose settings contradict each other; the message names them.
        got = "settings that do not fit together"
    return ConfigError(key, got=got, allowed=first["msg"].removeprefix("Value error, "))


def _not_a_table(key: str, got: object) -> ConfigError:
    """Return the error for a value in place of a section. Text may contain a password and is not quoted."""
    shown = got if isinstance(got, int | float) else "a value"
    return ConfigError(key, got=shown, allowed="a table of settings")
