"""A folder of sampled answers that grows line by line: the prompts, the settings, and resumption after
Ctrl-C.

`best-of-n` and `compare` write one. A line is a line of the file of prompts with what was found for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fairlead.cli import lines
from fairlead.cli.output import say
from fairlead.config.saving import replace_text
from fairlead.data.chat import Prompt, prompt
from fairlead.data.lines import Line
from fairlead.errors import ConfigError, RemoteInvalidInput

SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
_AT_ONCE = 16

Found = dict[str, Any]
"""A line of the file of samples."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of the file."""

    number: int
    """Its number among the prompts, from 0."""
    line: Line
    """Its line."""
    prompt: Prompt
    """The prompt."""


def read_prompts(file: Path) -> list[Asked]:
    """Return the prompts of a file of JSON lines or Parquet, or of standard input for `-`.

    Raises:
        ConfigError: if it cannot be read or is empty.
        DataError: for the first invalid line, before anything is sampled.
    """
    found = [
        Asked(number, line, prompt(line)) for number, line in enumerate(lines.read(file, field="PROMPTS"))
    ]
    if not found:
        raise ConfigError("PROMPTS", got=f"{file} without a line", allowed="at least one prompt")
    return found


async def collect(
    out: Path,
    asked: Sequence[Asked],
    work: Callable[[Asked], Awaitable[Mapping[str, object]]],
    *,
    settings: Mapping[str, object],
    restart: bool,
    doing: str,
) -> list[Found]:
    """Return what `work` finds for every prompt, in order; an interrupted run continues where it stopped.

    Args:
        out: the folder; samples.jsonl appears in it when it is complete.
        asked: the prompts.
        work: returns the keys to add to the line of a prompt.
        settings: everything that the samples depend on.
        restart: discard earlier samples.
        doing: name of the progress bar.

    Raises:
        ConfigError: if the folder has samples of other settings or prompts.
        RemoteInvalidInput: if a service refuses a prompt; names file and line.
    """
    from fairlead.clients.bulk import progress_bar

    digest = hashlib.sha256(json.dumps([one.line.values for one in asked], default=str).encode()).hexdigest()[
        :12
    ]
    _claim(out, {**settings, "prompts": digest}, restart=restart)
    samples = out / SAMPLES
    if samples.exists() and not restart:
        say(f"{samples} is complete; --restart samples again", err=True)
        return list(_read(samples))
    added = frozenset(settings["added"] if isinstance(settings["added"], list) else [])

    async def named(one: Asked) -> Found:
        try:
            return {**one.line.values, **await work(one)}
        except RemoteInvalidInput as error:
            raise RemoteInvalidInput(f"{one.line.file}:{one.line.number}: {error}") from None

    with lines.resumable(samples, added=added, restart=restart) as partial:
        done = sum(1 for _ in partial.done())
        with progress_bar(doing, total=len(asked), shown=True, done=done) as advance:
            async for line in lines.in_order(iter(asked[done:]), named, at_once=_AT_ONCE):
                partial.write([line])
                advance(1)
    return list(_read(samples))


def prompt_of(line: Mapping[str, Any], *, added: str) -> Prompt:
    """Return the prompt of a line of samples.

    Args:
        line: the line.
        added: the key that was added to the line of the file of prompts.
    """
    return prompt(Line("samples", 0, {key: value for key, value in line.items() if key != added}))


def report(out: Path, figures: Mapping[str, object], markdown: str) -> None:
    """Write report.json, report.md and, where jinja2 is installed, report.html with a picture."""
    replace_text(out / "report.json", json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    replace_text(out / "report.md", markdown)
    if find_spec("jinja2") is None:
        say("no picture: report.html needs the extra `train`", err=True)
        return
    from fairlead.report import sampling

    sampling.write(out, figures)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _claim(out: Path, settings: Mapping[str, object], *, restart: bool) -> None:
    """Write the settings into the folder, or check that it has the same ones."""
    path = out / SETTINGS
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = None
    except (OSError, ValueError) as error:
        raise ConfigError(
            "--out", got=f"{path}: {error}", allowed="a folder of this verb, or an empty one"
        ) from error
    now = json.loads(json.dumps(settings))
    if before is not None and before != now and not restart:
        changed = [
            f"{key}: {_shown(before.get(key))} before, {_shown(now.get(key))} now"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        raise ConfigError(
            "--out",
            got=f"samples of other settings ({'; '.join(changed)}) in {out}",
            allowed="another folder, or --restart to sample again",
        )
    if before is None and (out / SAMPLES).exists():
        raise ConfigError("--out", got=f"{out / SAMPLES} without {SETTINGS}", allowed="another folder")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(now, indent=1, ensure_ascii=False) + "\n")


def _shown(value: object) -> str:
    """Return a value as text whose middle may be left out: paths begin alike, versions end differently."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:19]}…{text[-40:]}"


def _read(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise ConfigError(
                    "--out", got=f"{path}:{number}, which is damaged", allowed="--restart to sample again"
                ) from None
