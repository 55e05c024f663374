"""Write the two pages of configuration keys from the docstrings in fairlead/config.

`python docs/configuration_table.py` writes docs/configuration.md, the keys of `COMMON`, and
docs/configuration-reference.md, every other key. A test compares both pages with the docstrings.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fairlead.config import RunConfig
from fairlead.config.base import TlsSection
from fairlead.config.run import field_names
from fairlead.config.serving import BatchingSection

COMMON = {
    "": "name runs seed deterministic",
    "model": "path chat_template template_arguments",
    "model.scratch": "hidden_size num_layers num_heads max_position_embeddings tokenizer vocabulary_size",
    "data": "demonstrations heldout_demonstrations preferences heldout_preferences thumbs tie_margin prompts "
    "heldout_prompts fresh_rankings sentences bad_lines prompt_words heldout_fraction",
    "sft": "device dtype threads max_micro_batch_tokens gradient_checkpointing compile epochs batch_size "
    "batching learning_rate learning_rate_schedule weight_decay max_sequence_tokens",
    "sft.lora": "rank alpha merge",
    "reward_model": "device dtype threads max_micro_batch_tokens gradient_checkpointing path ensemble_size "
    "epochs batch_size learning_rate learning_rate_schedule weight_decay max_sequence_tokens",
    "reward_model.lora": "rank alpha merge",
    "preference": "device dtype threads max_micro_batch_tokens gradient_checkpointing path loss rankings "
    "beta sft_coefficient epochs batch_size learning_rate learning_rate_schedule max_sequence_tokens",
    "preference.lora": "rank alpha merge",
    "ppo": "device dtype threads max_micro_batch_tokens gradient_checkpointing updates batch_size "
    "num_samples dynamic_sampling mini_batch_size epochs max_staleness estimator loss learning_rate "
    "critic_learning_rate learning_rate_schedule schedule_updates warmup_updates critic_init kl_coefficient "
    "kl_control kl_coefficient_end kl_target missing_eos_penalty normalise_scores score_clip ptx_coefficient "
    "ptx_batch_size",
    "ppo.lora": "rank alpha",
    "guard": "action length_ratio_stop_above",
    "sampling": "temperature max_new_tokens stop_strings",
    "evaluation": "every_updates max_seconds num_prompts",
    "policy": "path replicas addresses device dtype threads max_sequence_tokens max_slots serve_initial "
    "engine vllm",
    "reward": "path replicas addresses device dtype threads max_sequence_tokens watch allow_reload engine "
    "function tensor_parallel chat_template aliases",
    "reward.batching": "max_batch_tokens",
    "reference": "path replicas addresses device dtype threads max_sequence_tokens engine tensor_parallel",
    "reference.batching": "max_batch_tokens",
    "rollout_worker": "replicas max_in_flight",
    "gateway": "replicas addresses tls chat_log collect collect_notice",
    "feedback": "replicas addresses tls origin store",
    "feedback.collect": "share per_user keep_days",
    "feedback.project": "name kinds overlap shared_share gold_share judges audit_share",
    "iterate": "rounds tasks repeat_prompts answers wanted_judgments min_agreement gate reward_model_start "
    "reward_model_epochs wait_hours fresh_per_update",
    "queue": "redis_url redis_password",
    "weights": "transport dtype",
    "checkpoint": "every_updates keep",
    "ranks": "per_node nodes join_seconds stall_seconds",
    "observe": "log_level log_style access_log metrics_host metrics_port "
    "otlp_endpoint trace_one_in tensorboard trackers tracker_project "
    "rollout_samples",
    "keys": "file redis_url",
    "tls": "certificate key ca mutual",
}
"""The keys of docs/configuration.md, by section: those of the shipped files and of the tutorials."""

FOLDER = Path(__file__).parent
_COMMON_HEAD = """# Configuration

One TOML file describes a whole run, and each process reads the sections that it needs. A value is taken from
the first of these that sets it:

1. a flag: `--set ppo.updates=50`
2. an environment variable: `FAIRLEAD_PPO__UPDATES=50`
3. the file
4. the default in the tables below

An unknown key is refused with the name of the nearest known key. A key that was renamed or removed since the
last release is accepted with a warning. The configuration that a run used is kept, without secrets, in
`runs/<name>/config.toml`.

This page lists the keys that most runs set; [the reference](configuration-reference.md) has all others. Both
pages are generated from the docstrings in `fairlead/config/` by `python docs/configuration_table.py`.
"""
_REFERENCE_HEAD = """# Configuration reference

Every key that is not on [the page of common keys](configuration.md), which also explains where values come
from. The defaults suit most runs.
"""
_NAMES = {
    str: "text",
    SecretStr: "text",
    Path: "path",
    int: "integer",
    float: "number",
    bool: "true or false",
}


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    common = {f"{section}.{key}".lstrip(".") for section, keys in COMMON.items() for key in keys.split()}
    known = set(field_names())
    if not common <= known:
        raise ValueError(f"COMMON lists keys that do not exist: {sorted(common - known)}")
    return {
        "configuration.md": _page(_COMMON_HEAD, common),
        "configuration-reference.md": _page(_REFERENCE_HEAD, known - common),
    }


def _page(head: str, keys: set[str]) -> str:
    parts = [head]
    for section, model, what in (("", RunConfig, ""), *_sections(RunConfig)):
        prefix = f"{section}." if section else ""
        fields = {
            name: field
            for name, field in model.model_fields.items()
            if prefix + name in keys and not _section(field)
        }
        if not fields:
            continue
        if section:
            parts += [f"\n## `[{section}]`\n", f"{what}\n", *_rows(fields)]
        else:
            parts += ["\n## Top of the file\n", *_rows(fields)]
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield the name, the class and the description of every section.

    A class that describes more than one section has its description at the field.
    """
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            shared = prefix and section in (TlsSection, BatchingSection)
            what = (field.description if shared else inspect.getdoc(section)) or ""
            yield prefix + name, section, " ".join(what.split())
            yield from _sections(section, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _rows(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | type | default | what it does |", "|---|---|---|---|"]
    for name, field in fields.items():
        what = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_kind(field)} | {_default(field.default)} | {what} |")
    return rows


def _kind(field: FieldInfo) -> str:
    limits = _limits(field)
    return _type_name(field.annotation) + (f", {limits}" if limits else "")


def _type_name(kind: object) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in arguments if choice is not type(None))
    if origin is dict:
        return "table"
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    return _NAMES.get(kind, str(kind))  # type: ignore[call-overload, no-any-return]


def _limits(field: FieldInfo) -> str:
    words = []
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            words.append(f"≥ {limit.ge}")
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"> {limit.gt}")
        elif isinstance(limit, annotated_types.Le):
            words.append(f"≤ {limit.le}")
        elif isinstance(limit, annotated_types.Lt):
            words.append(f"< {limit.lt}")
    return ", ".join(words)


def _default(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
