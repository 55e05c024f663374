"""Errors for missing extras, and colours on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
import typer

from fairlead.cli import output


def test_missing_modules_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(output._MODULES, "train", ("json", "no_such_module"))
    with pytest.raises(typer.Exit) as ended:
        output.need("train")
    assert ended.value.exit_code == 2
    expected = (
        "error: this verb needs no_such_module, which a light install does not include: "
        "pip install 'fairlead-rlhf[train]'\n"
    )
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("extra", sorted(output._MODULES))
def test_full_install_has_every_module(extra: str):
    output.need(extra)


@pytest.mark.parametrize(("no_color", "shown"), [("1", "error: no"), ("", "\x1b[31merror: no\x1b[0m")])
def test_terminal_shows_colours_unless_no_color_is_set(no_color: str, shown: str):
    mine, theirs = pty.openpty()
    program = "from fairlead.cli.output import fail; fail('no')"
    environment = os.environ | {"NO_COLOR": no_color, "TERM": "xterm"}
    with os.fdopen(mine, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", program], env=environment, stderr=theirs, check=False)
        os.close(theirs)
        assert terminal.read(200).decode().splitlines()[0] == shown
