"""Where the verbs write: what `--out` may name, and tables that are wider than the terminal."""

from __future__ import annotations

import os
import re
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console, Group
from rich.table import Table
from typer.testing import CliRunner

from fairlead.cli import lines
from fairlead.cli.main import app
from fairlead.cli.output import print_in_full
from fairlead.errors import ConfigError
from fairlead.feedback_client.follow import RankingsFile

OWN_DATA = Path(__file__).parents[4] / "examples" / "own_data" / "run.toml"


def test_table_wider_than_the_terminal_keeps_every_column():
    table = Table("run", *(f"figure {number}" for number in range(12)), box=None)
    table.add_row("x" * 60, *map(str, range(12)))
    long = "a remark of " + "many words " * 20
    written = StringIO()
    print_in_full(Console(file=written, width=40), Group(table, long), long)
    heading, row, *notes, remark = written.getvalue().splitlines()
    assert heading.split()[-1] == "11"
    assert row.split() == ["x" * 60, *map(str, range(12))]
    assert remark.rstrip() == long.rstrip()
    assert len(notes) > 1, "what explains a table is wrapped at words"
    assert all(len(note) <= 40 for note in notes)
    assert " ".join(" ".join(notes).split()) == long.rstrip()


@pytest.mark.parametrize(
    ("verb", "columns"),
    [("data check", "truncated left out"), ("plan", "cache incoming runtime")],
)
def test_figures_of_a_run_are_whole_in_80_columns(verb: str, columns: str):
    shown = CliRunner().invoke(app, [*verb.split(), str(OWN_DATA)], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert shown.exit_code == 0, shown.output
    assert re.search(columns.replace(" ", " +"), shown.stdout), shown.stdout


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_out_that_is_no_file_is_refused_before_the_work(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    """A rename at the end would replace a device such as /dev/null, or fail after hours for a folder."""
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    else:
        os.mkfifo(out)
    with pytest.raises(typer.Exit), lines.writing(out):
        pass
    with pytest.raises(typer.Exit), lines.resumable(out, added=frozenset(), restart=False):
        pass
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "response": "b"}\n')
    flags = ["score", str(pairs), "--address", "127.0.0.1:1", "--timeout-seconds", "0.1", "--out", str(out)]
    refused = CliRunner().invoke(app, flags)
    assert (refused.exit_code, "a name that does not exist yet" in refused.stderr) == (2, True)
    assert capsys.readouterr().err.count("allowed: a file, or a name that does not exist yet") == 2
    assert out.exists()
    assert not out.is_file()
    assert sorted(tmp_path.iterdir()) == [out, pairs]


@pytest.mark.parametrize(
    "content", ["a note without a line break", "first line\nsecond", '{"prompt": "x"}\n{"a']
)
def test_file_of_something_else_is_not_cut_by_follow(tmp_path: Path, content: str):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match="allowed: a file of followed rankings, or a new one"):
        RankingsFile(path)
    assert path.read_text() == content
