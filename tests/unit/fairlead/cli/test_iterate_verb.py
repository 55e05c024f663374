"""`fairlead iterate` refuses to start where it would share a folder or a run."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fairlead.cli.main import app
from fairlead.config import RunFolder, load
from fairlead.local.run_files import RunLock
from fairlead.rounds.iteration import steps_key


def test_iterate_refuses_foreign_folders_second_commands_and_unknown_labelers(tmp_path: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["iterate", "--set", f"runs={tmp_path}", *flags])
        return found.exit_code, found.output

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    code, text = run("--set", "name=other")
    assert code == 2
    assert "this one is not empty and not of an iterate" in text

    code, text = run("--with-simulated-labelers", "examples.parcel_help.people:nobody")
    assert code == 2
    assert "MODULE:NAME" in text

    mine = tmp_path / "mine"
    with RunLock(RunFolder(mine / "iterate")):
        (mine / "iterate.json").write_text(json.dumps({"key": steps_key(load()), "seconds": {}}))
        code, text = run("--set", "name=mine")
        assert code == 1
        assert "another fairlead process" in text
