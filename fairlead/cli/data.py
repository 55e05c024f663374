"""`fairlead data`: looks at data before anything is trained on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.output import Json, Overrides, fail, need, with_examples

if TYPE_CHECKING:
    from fairlead.config import RunConfig
    from fairlead.data.lengths import Ruler

_CHECK = with_examples(
    "Look at data: formats, lengths, what will be cut or left out, duplicates, ties, and every bad line.\n\n"
    "Takes a file, a folder, a dataset of the hub, or a run's file: then all that it names, with its limits, "
    "its split and its tokenizer. Trains nothing, writes nothing. The exit code is 2 if anything is bad.",
    "fairlead data check run.toml",
    "fairlead data check rankings.jsonl.gz --tokenizer Qwen/Qwen2.5-0.5B-Instruct",
    "fairlead data check 'org/name?split=train[:5000]' --as preferences --json",
    "fairlead data check demos.parquet --set sft.max_sequence_tokens=1024",
)


class Kind(StrEnum):
    """What `[data]` may name."""

    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"
    PROMPTS = "prompts"
    SENTENCES = "sentences"


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    group = typer.Typer(
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Look at data before training on it.",
    )
    group.command("check", help=_CHECK)(check)
    app.add_typer(group, name="data")


def check(
    source: Annotated[str, typer.Argument(metavar="FILE|RUN.TOML", help="What to look at.")],
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help=f"What a file is read as: {', '.join(Kind)}. Without it: what it looks like.",
        ),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="Count tokens of this model folder or hub id. Without it: those of the run's models, "
            "else words.",
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Bad lines told of each kind.")] = 20,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Checks and tells."""
    from rich.console import Console

    from fairlead.cli import findings
    from fairlead.data.check import check as look

    config = _config(source, kind, overrides)
    with Console(stderr=True).status(f"reading {source}"):
        rulers, limits, notes = _rulers(config, tokenizer)
        reports = look(config, rulers=rulers, limits=limits, max_errors=limit)
    if not reports:
        fail(f"data: got no source in {source}, allowed: at least one to look at")
    if as_json:
        typer.echo(json.dumps({report.kind: asdict(report) for report in reports}, ensure_ascii=False))
    else:
        findings.show(Console(), reports, notes)
    if wrong := findings.wrong(reports):
        fail(wrong)


def _config(source: str, kind: Kind | None, overrides: list[str] | None) -> RunConfig:
    """The run's, or one that names the file alone."""
    from fairlead.config import load, parse_overrides
    from fairlead.data.kinds import detect

    settings = parse_overrides(overrides or [])
    if source.endswith(".toml"):
        if kind:
            fail("--as: got a run's file beside it, allowed: a file, a folder or a dataset of the hub")
        return load(Path(source), overrides=settings)
    config = load(overrides=settings)
    found = kind.value if kind else detect(config, source)
    return config.model_copy(update={"data": config.data.model_copy(update={found: source})})


def _rulers(config: RunConfig, tokenizer: str) -> tuple[dict[str, Ruler], dict[str, int], list[str]]:
    """What measures each kind, the longest sequence that its stage takes, and what a person should know."""
    from fairlead.data.kinds import KINDS
    from fairlead.data.lengths import Words
    from fairlead.errors import ModelLoadError

    trained = str(config.folder.sft_model) if config.folder.sft_model.is_dir() else config.model.path
    readers = {
        "demonstrations": (config.model.path or trained, config.sft.max_sequence_tokens),
        "preferences": (config.reward_model.path or trained, config.reward_model.max_sequence_tokens),
        "prompts": (config.policy.path or trained, config.policy.max_sequence_tokens),
        "sentences": (config.model.path or trained, config.sft.max_sequence_tokens),
    }
    rulers: dict[str, Ruler] = dict.fromkeys(KINDS, Words())
    limits: dict[str, int] = {}
    notes: dict[str, None] = {}
    if tokenizer:
        need("torch")
    elif find_spec("transformers") is None or find_spec("torch") is None:
        return rulers, limits, ["lengths are words: a light install has no tokenizers"]
    for kind in (kind for kind in KINDS if getattr(config.data, kind)):
        path, most = readers[kind]
        if not (tokenizer or path):
            notes["lengths are words: name a --tokenizer to count tokens, and what is cut"] = None
            continue
        try:
            rulers[kind], own = _reader(tokenizer or path)
        except ModelLoadError as error:
            if tokenizer:
                raise
            notes[f"lengths are words: {error}"] = None
            continue
        if most or own:
            limits[kind] = min(most or own, own or most)
    return rulers, limits, list(notes)


@cache
def _reader(path: str) -> tuple[Ruler, int]:
    """What counts the tokens of a model, and the longest sequence that it reads; 0 if nothing says it."""
    from fairlead.data.lengths import Tokens
    from fairlead.errors import ModelLoadError
    from fairlead.nn.loading import load_config, load_tokenizer, max_sequence_tokens

    ruler = Tokens(load_tokenizer(path))
    try:
        return ruler, max_sequence_tokens(load_config(path), 0)
    except ModelLoadError:  # a tokenizer alone
        return ruler, 0
