"""Exit codes and errors of the examples' commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import best_of_n
from examples.exit_codes import with_exit_code
from fairlead.errors import Unavailable


def test_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @with_exit_code
    def command(error: Exception | None) -> None:
        if error is not None:
            raise error

    assert command(None) == 0
    assert command(Unavailable("no service at x:1")) == 2
    assert capsys.readouterr().err == "error: no service at x:1\n"
    assert command(PermissionError(13, "Permission denied", "out/x")) == 2
    assert capsys.readouterr().err == "error: out/x: Permission denied\n"
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())


@pytest.mark.parametrize("text", [None, "not JSON\n", '{"text": "no prompt"}\n', "7\n"])
def test_best_of_n_reports_a_file_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    if text is not None:
        prompts.write_text(text)
    assert best_of_n.main(["127.0.0.1:1", "127.0.0.1:1", "--prompts", str(prompts)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --prompts: got ")
    assert f"{prompts}, which cannot be read: " in line
    assert line.endswith('allowed: a JSON Lines file with a key "prompt"')
