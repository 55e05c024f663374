"""Steps: each once, remembered across processes, in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.errors import ConfigError
from fairlead.rounds.steps import Steps


def steps(
    file: Path, *, key: str = "k", verb: str = "iterate", fresh: bool | None = False, lines=None
) -> Steps:
    shown = [] if lines is None else lines
    return Steps(file, key=key, verb=verb, total=2, show=shown.append, fresh=fresh)


def test_finished_step_is_not_repeated_and_an_interrupted_one_is(tmp_path: Path) -> None:
    file = tmp_path / "q" / "iterate.json"
    done: list[str] = []
    shown: list[str] = []

    def fail() -> None:
        raise OSError("disk full")

    first = steps(file)
    first.run("one", "first", lambda: done.append("one"))
    with pytest.raises(OSError, match="disk full"):
        first.run("two", "second", fail)
    again = steps(file, lines=shown)
    again.run("one", "first", lambda: done.append("one again"))
    again.run("two", "second", lambda: done.append("two"))
    assert done == ["one", "two"]
    assert set(again.seconds) == {"one", "two"}
    assert shown[0] == "[1/2] first: already done, in 0.0 s"
    assert shown[1:3] == ["[2/2] second …", "    0.0 s"]
    again.forget("two", "unknown")
    again.run("two", "second", lambda: done.append("two again"))
    assert done == ["one", "two", "two again"]
    kept = json.loads(file.read_text())
    assert kept["seconds"].keys() == kept["cpu_seconds"].keys() == {"one", "two"}


def test_other_settings_are_refused_and_fresh_starts_over(tmp_path: Path) -> None:
    file = tmp_path / "q" / "stages.json"
    steps(file, verb="quickstart").run("one", "first", (file.parent / "left").touch)
    with pytest.raises(ConfigError) as caught:
        steps(file, key="other", verb="quickstart")
    assert str(caught.value) == (
        f"quickstart: got '{file.parent}, made with other settings', allowed: the same seed and settings, "
        "--fresh to start over, or --set name=another"
    )
    with pytest.raises(ConfigError, match="the same seed and settings, or --set name=another"):
        steps(file, key="other", fresh=None)  # of a verb without the flag
    assert steps(file, key="other", fresh=True).seconds == {}
    assert not (file.parent / "left").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_folder_of_something_else_is_never_removed(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="this one is not empty and not of an iterate"):
        steps(tmp_path / "iterate.json", fresh=fresh)
    assert (tmp_path / "thesis.tex").exists()


def test_other_settings_are_accepted_while_no_step_is_done(tmp_path: Path) -> None:
    file = tmp_path / "q" / "stages.json"
    steps(file)
    steps(file, key="other").run("one", "first", (file.parent / "made").touch)
    with pytest.raises(ConfigError, match="made with other settings"):
        steps(file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "seconds": {"one": "x"}}'])
def test_damaged_file_of_steps_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "q" / "stages.json"
    steps(file)
    file.write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        steps(file)
