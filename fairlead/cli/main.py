"""`fairlead`: the root of the command line, which collects the verbs and turns errors into exit codes.

The verbs import what they need when they are called, so that `--help` and `--version` are fast.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fairlead import __version__
from fairlead.cli import (
    agreement,
    audit,
    best_of_n,
    compare,
    dashboard,
    data,
    evaluate,
    export,
    feedback,
    generate,
    iterate,
    k8s,
    keys,
    plan,
    reload,
    score,
    serve,
    stages,
    status,
    traces,
)
from fairlead.cli.output import fail, write_any_text

_EPILOG = """\b
Start here:     fairlead quickstart
Your own data:  fairlead sft run.toml
                fairlead reward-model run.toml
                fairlead ppo run.toml     (or: fairlead dpo run.toml)

Exit codes: 0 done, 1 failed, 2 invalid flags, configuration, model or data, 3 a newer trainer took over,
4 waited too long, 5 stopped by a guard, 6 stopped by the gate of a round, 128 + n stopped by signal n.
"""


_ORDER = (
    *(
        "quickstart",
        "sft",
        "reward-model",
        "dpo",
        "ppo",
        "iterate",
        "serve",
        "reload",
        "score",
        "generate",
        "best-of-n",
        "compare",
        "evaluate",
    ),
    *(
        "data",
        "feedback",
        "agreement",
        "export",
        "export-triton",
        "report",
        "status",
        "dashboard",
        "audit",
        "traces",
        "plan",
    ),
    *("keys", "k8s"),
)


class _Group(TyperGroup):
    """Turns Fairlead's errors and those of the operating system into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - click's own signature
        """Return the names of verbs and groups in the order in which they are used."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's own signature
        """Run the command line."""
        write_any_text()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's own signature
        """Run the verb."""
        from fairlead.errors import FairleadError, exit_code

        try:
            return super().invoke(ctx)
        except FairleadError as error:
            fail(str(error), code=exit_code(error))
        except BrokenPipeError:
            raise  # the reader of standard output closed it, which is not an error
        except OSError as error:
            fail(f"{error.filename or 'operating system'}: {error.strerror or error}", code=1)


app = typer.Typer(
    name="fairlead",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="RLHF as services: fine-tune, train a reward model, run PPO. One TOML file describes a run.",
    epilog=_EPILOG,
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
iterate.register(app)
serve.register(app)
reload.register(app)
score.register(app)
generate.register(app)
best_of_n.register(app)
compare.register(app)
evaluate.register(app)
data.register(app)
feedback.register(app)
agreement.register(app)
export.register(app)
dashboard.register(app)


status.register(app)
audit.register(app)
traces.register(app)
plan.register(app)
keys.register(app)
k8s.register(app)
