"""Writes docs/cli.md from the command line itself: `python docs/cli_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fairlead.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

`fairlead VERB --help` says what stands here; this page is made from it by `python docs/cli_page.py`, and a
test compares the two and runs every example through the parser.

**The same everywhere.** A verb that needs a run's configuration takes its file as an argument or by
`--config`, and `--set section.field=value` as often as needed; flags win over `FAIRLEAD_SECTION__FIELD` in
the environment, that over the file, that over the default. `--json` writes for programs, `--out FILE`
writes a file that appears whole or not at all, `--address HOST:PORT` names a service, once for every
replica. `-` is standard input. Results go to standard output, all else to standard error. `NO_COLOR` ends
colours; pipes and files get none.

**Completion.** `fairlead --install-completion` for bash, zsh, fish and PowerShell; `--show-completion`
shows what it would install.

**Version.** `fairlead --version`; its one source is `__version__` in `fairlead/__init__.py`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done; also `status` and `plan`, whatever they have to say |
| 1 | failed: a service that does not answer, a process that died too often, a file that cannot be written |
| 2 | a mistake in flags, configuration, model or data; the message names it and what is allowed |
| 3 | a newer trainer has taken over this run |
| 4 | waited too long; the message names for what |
| 5 | a guard stopped PPO: a signal of reward hacking |
| 128 + n | stopped by signal n: 129 hang-up, 130 Ctrl-C, 143 SIGTERM. The same command goes on |

A mistake is one line on standard error, `error: field: got …, allowed: …`, without a traceback. The codes
come from one table in `fairlead/errors.py`; [architecture.md](architecture.md#exit-codes-of-processes) says
what a supervisor makes of them.
"""

_Command = Any  # typer's own copy of click, which it keeps to itself


def page() -> str:
    """The page as it should be."""
    group: _Command = typer.main.get_command(app)
    lines = [HEAD]
    for path, command in verbs(group):
        lines += [f"\n## fairlead {' '.join(path)}\n", *_description(command)]
        lines += ["\n| | |", "|---|---|", *_rows(command)]
    return "\n".join(lines) + "\n"


def verbs(group: _Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Command]]:
    """Every verb with its path, those of groups too."""
    for name in group.list_commands(None):
        here, command = (*path, name), group.commands[name]
        if hasattr(command, "commands"):
            yield from verbs(command, here)
        else:
            yield here, command


def examples(command: _Command) -> list[str]:
    """The command lines that a verb's help shows."""
    _, _, after = command.help.partition("\b\nExamples:\n")
    return [line.strip() for line in after.splitlines() if line.strip()]


def _description(command: _Command) -> Iterator[str]:
    text, _, _ = command.help.partition("\b\n")
    yield text.strip()
    yield "\n```console"
    yield from (f"$ {example}" for example in examples(command))
    yield "```"


def _rows(command: _Command) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name.upper()
        else:
            value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
            name = ", ".join(parameter.opts) + value
        default = parameter.default
        shown = default not in (None, False, "", []) and not callable(default)
        tail = f" Default: {getattr(default, 'value', default)}." if shown else ""
        needed = " Required." if parameter.required else ""
        yield f"| `{name}` | {(parameter.help or '').replace('|', '/')}{needed}{tail} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
