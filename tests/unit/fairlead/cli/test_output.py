"""Errors for missing extras; colours on a terminal; text that a terminal cannot encode."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

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


def test_verbs_write_to_a_terminal_of_another_encoding(tmp_path: Path):
    run = tmp_path / "läuft…"
    (run / "checkpoints").mkdir(parents=True)
    data = tmp_path / "日本.jsonl"
    data.write_text('{"prompt": "日本 …"}\n{"prompt": 5}\n')
    for encoding, arguments, code in (
        ("latin-1", ("status", run), 0),
        ("ascii", ("data", "check", data, "--json"), 2),
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "fairlead.cli", *map(str, arguments)],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        shown.stdout.decode(encoding)
        assert b"Traceback" not in shown.stdout + shown.stderr, shown.stderr.decode()
        assert b"Unicode" not in shown.stdout + shown.stderr, shown.stderr.decode()
        assert shown.returncode == code, (arguments, shown.stderr)


@pytest.mark.parametrize(
    ("encoding", "text", "is_ascii"),
    [
        ("utf-8", "日本 …", False),
        ("UTF8", "日本 …", False),
        ("utf-8", "half \ud83d", True),
        ("latin-1", "naïve 日本", True),
        (None, "é", True),
    ],
)
def test_json_is_valid_in_every_encoding(encoding: str | None, text: str, is_ascii: bool):
    found = output.json_text({"text": text}, encoding=encoding)
    assert json.loads(found) == {"text": text}
    assert found.isascii() is is_ascii
    found.encode(encoding or "ascii")
