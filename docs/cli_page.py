"""Writes docs/cli.md from the help texts of the command line: `python docs/cli_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fairlead.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

This page contains the help texts of `fairlead VERB --help`. `python docs/cli_page.py` generates it; a test
compares the two and parses every example.

**Common flags.** A verb that needs a run's configuration accepts its file as an argument or with
`--config`, and any number of `--set section.field=value`. Flags override `FAIRLEAD_SECTION__FIELD` in the
environment, which overrides the file, which overrides the default. `--json` writes JSON. `--out FILE`
writes a file that appears only when it is complete. `--address HOST:PORT` names a service and is repeated
for each replica. `-` is standard input. Results go to standard output, everything else to standard error.
Output is coloured on a terminal unless `NO_COLOR` is set.

**Completion.** `fairlead --install-completion` supports bash, zsh, fish and PowerShell; `--show-completion`
shows what it would install.

**Version.** `fairlead --version` shows `__version__` of `fairlead/__init__.py`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done; also `status` of a failed run, and `plan` of a run that does not fit |
| 1 | failed: for example a service does not answer, a process died too often, or a file cannot be written |
| 2 | invalid flags, configuration, model or data; the message says what was received and what is allowed |
| 3 | a newer trainer has taken over this run |
| 4 | waited too long; the message says for what |
| 5 | a guard stopped PPO because it detected reward hacking |
| 6 | `iterate`: people agree too little, or a round's reward model is worse than the one before |
| 128 + n | stopped by signal n: 129 hang-up, 130 Ctrl-C, 143 SIGTERM; the same command continues the run |

Invalid input gives one line on standard error, `error: field: got …, allowed: …`, without a traceback. The
codes are defined in `fairlead/errors.py`; [architecture.md](architecture.md#exit-codes-of-processes)
describes how a supervisor reacts to them.
"""

_Command = Any  # typer's private copy of click


def page() -> str:
    """Return the text of the page."""
    group: _Command = typer.main.get_command(app)
    lines = [HEAD]
    for path, command in verbs(group):
        lines += [f"\n## fairlead {' '.join(path)}\n", *_description(command)]
        lines += ["\n| | |", "|---|---|", *_rows(command)]
    return "\n".join(lines) + "\n"


def verbs(group: _Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Command]]:
    """Yield every verb with its path, including the verbs of groups."""
    for name in group.list_commands(None):
        here, command = (*path, name), group.commands[name]
        if hasattr(command, "commands"):
            yield from verbs(command, here)
        else:
            yield here, command


def examples(command: _Command) -> list[str]:
    """Return the example command lines of a verb's help."""
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
