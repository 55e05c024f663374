"""What the verbs share: common flags, help texts with examples, error output, checks for missing extras."""

from __future__ import annotations

import codecs
import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fairlead.clients import ClientOptions
    from fairlead.config import RunConfig

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="RUN.TOML", help="The run's file; without it, defaults and flags apply."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="RUN.TOML", help="The run's file, as a flag.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one setting (section.field=value); repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write to this file instead of standard output; it appears only when it is complete.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/quickstart.")]
TimeoutSeconds = Annotated[
    float,
    typer.Option("--timeout-seconds", min=0.001, help="Deadline of one request, including its retries."),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens in an answer.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Discard earlier samples.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the first prompt; each further prompt adds 1.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="A text that ends an answer; repeatable.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, help="Sampling temperature; 0 is greedy.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus mass to keep, in (0, 1].")]
_address_option = typer.Option(
    "--address", metavar="HOST:PORT", help="Address of the service; repeat it for each replica."
)
Addresses = Annotated[list[str], _address_option]
OptionalAddresses = Annotated[list[str] | None, _address_option]

_MODULES = {
    "torch": ("torch", "transformers", "safetensors"),
    "train": ("torch", "transformers", "safetensors", "scipy", "jinja2"),
    "k8s": ("kubernetes", "yaml"),
    "gateway": ("fastapi", "uvicorn"),
    "report": ("jinja2",),
    "dashboard": ("fastapi", "uvicorn", "jinja2"),
    "feedback": ("fastapi", "uvicorn", "jinja2", "markdown_it"),
}


def with_examples(text: str, *examples: str) -> str:
    """Return the help of a verb: what it does, then examples, one command per line."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{text}\n\n\b\nExamples:\n{lines}"


def config_file(argument: Path | None, option: Path | None) -> Path | None:
    """Return the run's file, given as an argument or by `--config`."""
    if argument is not None and option is not None and argument != option:
        fail(f"--config: got {str(option)!r} and the argument {str(argument)!r}, allowed: one of them")
    return argument or option


def load_config(argument: Path | None, option: Path | None, overrides: list[str] | None) -> RunConfig:
    """Return the run's configuration from file, environment and flags.

    Raises:
        ConfigError: as in `fairlead.config.load`.
    """
    from fairlead.config import load, parse_overrides

    return load(config_file(argument, option), overrides=parse_overrides(overrides or []))


def connection(timeout_seconds: float) -> ClientOptions:
    """Return the client options that FAIRLEAD_TLS__… and FAIRLEAD_KEYS__… of the environment set.

    The client itself reads the API key from FAIRLEAD_API_KEY.
    """
    from fairlead.clients import options_of
    from fairlead.config import load

    return options_of(load(), timeout_seconds=timeout_seconds)


def run_folder(run: Path) -> Path:
    """Return the folder of a run; exit with an error if it is not a folder."""
    if not run.is_dir():
        fail(f"run: got {str(run)!r}, allowed: the folder of a run")
    return run


def check_out(out: Path) -> None:
    """Exit with an error if `--out` is a folder, a pipe or a device: the file would replace it."""
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "a pipe or a device"
        fail(f"--out: got {str(out)!r}, {kind}, allowed: a file, or a name that does not exist yet")


def need(extra: str) -> None:
    """Exit with an install command if modules of an extra are missing; imports none of them."""
    from fairlead.errors import install_command

    missing = [module for module in _MODULES[extra] if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        fail(f"this verb needs {names}, which a light install does not include: {install_command(extra)}")


def write_any_text() -> None:
    """Write `?` for a character that standard output cannot encode, such as `…` on a terminal in Latin-1.

    Standard error already has such a rule.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def json_text(values: object, *, encoding: str | None) -> str:
    """Return JSON on one line for a stream of an encoding; it is ASCII unless the encoding is UTF-8.

    Dates and other values of table rows are written as text.
    """
    import json

    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        if codecs.lookup(encoding or "ascii").name == "utf-8":
            text.encode()  # half a surrogate pair has no UTF-8 encoding
            return text
    except (LookupError, UnicodeEncodeError):
        pass
    return json.dumps(values, default=str)


def print_in_full(console: Console, *parts: RenderableType) -> None:
    """Print tables and lines in full, one after the other.

    rich cuts what is wider than the terminal, or than 80 columns where there is none: whole columns of
    figures would be missing in a log. A line that is too long for a terminal is wrapped by it; the lines of a
    group, which explain its table, are wrapped at words.
    """
    from rich.console import Group
    from rich.measure import Measurement
    from rich.table import Table

    for part in parts:
        pieces = part.renderables if isinstance(part, Group) else [part]
        for piece in pieces:
            is_table = isinstance(piece, Table)
            if isinstance(piece, Table):
                unlimited = console.options.update(max_width=sys.maxsize)
                piece.width = Measurement.get(console, unlimited, piece).maximum
            console.print(piece, soft_wrap=is_table or piece is part)


def say(text: str, *, err: bool = False, **style: Any) -> None:  # noqa: ANN401 - typer's own styles
    """Write a line, styled if the output is a terminal and NO_COLOR is not set."""
    typer.echo(text if os.environ.get("NO_COLOR") else typer.style(text, **style), err=err)


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Write `error: …` to standard error and exit."""
    say(f"error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(code)
