"""What the command line writes beside its results: one red line for an error, and the common flags."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="RUN.TOML", help="The run's file. Without it: defaults and flags.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override one setting; may be repeated."),
]


_MODULES = {
    "torch": ("torch", "transformers", "safetensors"),
    "train": ("torch", "transformers", "safetensors", "scipy", "matplotlib", "jinja2"),
}


def need(extra: str) -> None:
    """Ends with what to install if the modules of an extra are not there; imports none of them."""
    missing = [module for module in _MODULES[extra] if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        fail(f"this needs {names}, which a light install leaves out: pip install 'fairlead[{extra}]'")


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Writes `error: …` to standard error and ends."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(code)
