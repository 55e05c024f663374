"""`fairlead`: the command line. Collects the groups of verbs; knows errors and exit codes, no work.

Verbs import what they need when they are called, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fairlead import __version__
from fairlead.cli import quickstart, reports, serve, stages
from fairlead.cli.output import fail


class _Group(TyperGroup):
    """Turns the project's errors into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's own signature
        from fairlead.errors import FairleadError

        try:
            return super().invoke(ctx)
        except FairleadError as error:
            fail(str(error))


app = typer.Typer(
    name="fairlead",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="RLHF as services: fine-tune, train a reward model, run PPO. One TOML file describes a run.",
    epilog="Start here: fairlead quickstart. Your own data: fairlead sft run.toml, then "
    "fairlead reward-model run.toml, then fairlead ppo run.toml.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


stages.register(app)
serve.register(app)
quickstart.register(app)
reports.register(app)
