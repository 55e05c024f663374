"""The contract of the command line: examples that parse, the generated page, completion, exit codes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import fairlead
from fairlead.cli.main import app
from fairlead.errors import EXIT_CODE
from tests.contract.test_documents import ROOT, script
from tests.integration.page import blocks

GROUP: Any = typer.main.get_command(app)
PAGE = script("cli_page")
VERBS = dict(PAGE.verbs(GROUP))
EXAMPLES = [example for command in VERBS.values() for example in PAGE.examples(command)]
TUTORIAL = [
    command
    for block in blocks(ROOT / "docs" / "tutorial.md")
    if block.language == "console"
    for command, _ in block.commands
    if command.startswith("fairlead ")
]
"""Commands of the tutorial, which tests/integration/test_examples.py runs."""
CONSISTENT = {
    "--config": ("RUN.TOML",),
    "--set": ("KEY=VALUE",),
    "--address": ("HOST:PORT",),
    "--out": ("FILE", "FOLDER"),
}


def test_page_matches_the_help():
    assert (ROOT / "docs" / "cli.md").read_text() == PAGE.page()


def test_documented_verbs_exist_in_order():
    promised = "quickstart sft reward-model dpo ppo iterate serve reload score generate best-of-n compare"
    promised += " evaluate data feedback agreement export export-triton report status dashboard"
    promised += " audit traces plan"
    assert GROUP.list_commands(None)[: len(promised.split())] == promised.split()


@pytest.mark.parametrize("path", sorted(VERBS), ids=" ".join)
def test_every_verb_has_help_and_examples(path: tuple[str, ...]):
    command = VERBS[path]
    shown = PAGE.examples(command)
    assert shown
    assert all(example.startswith(f"fairlead {' '.join(path)}") for example in shown[:1])
    assert all(parameter.help for parameter in command.params), "a flag without help"


@pytest.mark.parametrize("example", [*EXAMPLES, *TUTORIAL])
def test_every_example_parses(example: str):
    # Each `fairlead` command of a pipe, without a redirection after `>`.
    ours = [shlex.split(part.split(" > ")[0]) for part in re.split(r"\s\|\s", example)]
    ours = [words for words in ours if words[0] == "fairlead"]
    assert ours
    for words in ours:
        command, arguments, path = GROUP, words[1:], []
        while hasattr(command, "commands"):
            path.append(arguments[0])
            command, arguments = command.commands[arguments[0]], arguments[1:]
        # Parses and checks flags and values, and calls nothing.
        command.make_context(" ".join(path), arguments, resilient_parsing=False)


def test_flags_of_the_same_name_take_the_same_value():
    for path, command in VERBS.items():
        for parameter in command.params:
            for option in parameter.opts:
                if option in CONSISTENT:
                    assert parameter.metavar in CONSISTENT[option], (path, option)
                if option == "--json":
                    assert parameter.is_flag, path


def test_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "fairlead/__init__.py"}
    written = re.findall(r'^__version__ = "(.+)"$', (ROOT / "fairlead" / "__init__.py").read_text(), re.M)
    assert written == [fairlead.__version__]
    elsewhere = [
        path
        for folder in ("fairlead", "services", "trainer")
        for path in (ROOT / folder).rglob("*.py")
        if "__version__ =" in path.read_text()
    ]
    assert elsewhere == [ROOT / "fairlead" / "__init__.py"]


def test_page_lists_every_exit_code():
    page = (ROOT / "docs" / "cli.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert listed == {0, 1, *EXIT_CODE.values()}
    named = re.findall(r"(\d) [a-z]", PAGE.app.info.epilog.partition("Exit codes:")[2])
    assert {int(code) for code in named} == listed


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(n, marks=pytest.mark.slow) for n in ("zsh", "fish"))]
)
def test_shells_get_a_completion_script(shell: str):
    shown = subprocess.run(
        [sys.executable, "-m", "fairlead.cli", "--show-completion", shell],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_FAIRLEAD_COMPLETE" in shown.stdout or "_COMPLETE=complete" in shown.stdout


def completions(line: str, tmp_path: Path) -> list[str]:
    """Return the completions that the console script offers to bash."""
    words = line.split(" ")
    environment = {
        "_FAIRLEAD_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = Path(sys.executable).with_name("fairlead")
    shown = subprocess.run(
        [program], env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    return shown.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fairlead s", {"sft", "serve", "score", "status"}),
        ("fairlead serve re", {"reward", "reference"}),
        ("fairlead plan --g", {"--gpu-gib", "--gpus"}),
    ],
)
def test_completion_offers_verbs_services_and_flags(line: str, offered: set[str], tmp_path: Path):
    assert set(completions(line, tmp_path)) == offered
