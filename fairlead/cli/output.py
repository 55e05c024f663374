"""What the verbs share: flags of the same name and meaning, help with examples, errors, missing extras."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from fairlead.clients import ClientOptions
    from fairlead.config import RunConfig

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="RUN.TOML", help="The run's file. Without it: defaults and flags.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="RUN.TOML", help="The run's file, named by a flag instead.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one setting (section.field=value); repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text for people.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="Write here, whole or not at all, instead of standard output."
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/quickstart.")]
TimeoutSeconds = Annotated[
    float,
    typer.Option("--timeout-seconds", min=0.001, help="Deadline of one request, all its tries together."),
]

_MODULES = {
    "torch": ("torch", "transformers", "safetensors"),
    "train": ("torch", "transformers", "safetensors", "scipy", "matplotlib", "jinja2"),
    "k8s": ("kubernetes", "yaml"),
    "gateway": ("fastapi", "uvicorn"),
}


def with_examples(text: str, *examples: str) -> str:
    """The help of a verb: what it does, then command lines that can be copied, each on a line of its own."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"{text}\n\n\b\nExamples:\n{lines}"


def config_file(argument: Path | None, option: Path | None) -> Path | None:
    """The run's file, given as an argument or by `--config`."""
    if argument is not None and option is not None and argument != option:
        fail(f"--config: got {str(option)!r} beside {str(argument)!r}, allowed: one file of a run")
    return argument or option


def load_config(argument: Path | None, option: Path | None, overrides: list[str] | None) -> RunConfig:
    """The run's configuration from file, environment and flags.

    Raises:
        ConfigError: as `fairlead.config.load`.
    """
    from fairlead.config import load, parse_overrides

    return load(config_file(argument, option), overrides=parse_overrides(overrides or []))


def connection(timeout_seconds: float) -> ClientOptions:
    """How a verb connects to a service: as FAIRLEAD_TLS__… and FAIRLEAD_KEYS__… of the environment say. The
    key itself, FAIRLEAD_API_KEY, is taken by the client.
    """
    from fairlead.clients import options_of
    from fairlead.config import load

    return options_of(load(), timeout_seconds=timeout_seconds)


def run_folder(run: Path) -> Path:
    """The folder of a run, checked."""
    if not run.is_dir():
        fail(f"run: got {str(run)!r}, allowed: the folder of a run")
    return run


def need(extra: str) -> None:
    """Ends with what to install if the modules of an extra are not there; imports none of them."""
    from fairlead.errors import install_command

    missing = [module for module in _MODULES[extra] if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        fail(f"this needs {names}, which a light install leaves out: {install_command(extra)}")


def say(text: str, *, err: bool = False, **style: Any) -> None:  # noqa: ANN401 - typer's own styles
    """Writes a line, in a style where a terminal shows it and NO_COLOR does not forbid it."""
    typer.echo(text if os.environ.get("NO_COLOR") else typer.style(text, **style), err=err)


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Writes `error: …` to standard error and ends."""
    say(f"error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(code)
