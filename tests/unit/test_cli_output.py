"""What the command line says when a light install is asked for heavy work."""

from __future__ import annotations

import pytest
import typer

from fairlead.cli import output


def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(output._MODULES, "train", ("json", "no_such_module"))
    with pytest.raises(typer.Exit) as ended:
        output.need("train")
    assert ended.value.exit_code == 2
    said = (
        "error: this needs no_such_module, which a light install leaves out: pip install 'fairlead[train]'\n"
    )
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("extra", sorted(output._MODULES))
def test_a_whole_install_has_everything(extra: str):
    output.need(extra)
