"""Every command reports missing and damaged data by the same errors, before it writes or loads anything."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from examples.helpful_harmless import baselines, data, instructions, kept, make
from examples.helpful_harmless.ai_feedback import __main__ as ai_feedback
from fairlead.config import load
from fairlead.errors import ConfigError, DataError

USER, OTHER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
PAIR = {"prompt": [USER], "chosen": [OTHER], "rejected": [OTHER]}
RANKING = {"prompt": "Do it.", "responses": [{"text": "Done.", "score": 0.5}]}


def _write(folder: Path, name: str, *rows: object) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))
    return file


def test_missing_file_is_one_error_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = f"folder of data: got '{tmp_path}', allowed: a folder with "
    for main in (make.main, ai_feedback.main):
        assert main([str(tmp_path), str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == f"error: {expected}{data.PAIRS}\n"
    _write(tmp_path, data.PAIRS, PAIR)
    assert make.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {expected}{data.RANKINGS}\n"
    with pytest.raises(ConfigError, match=f"^folder of data: .*{data.SENTENCES}$"):
        data.data_file(tmp_path, data.SENTENCES)
    assert not (tmp_path / "out").exists()


def test_missing_files_of_the_run_name_the_command_that_writes_them(tmp_path: Path) -> None:
    config = load(baselines.CONFIG, overrides={"data.preferences": str(tmp_path / "absent.jsonl")})
    with pytest.raises(ConfigError, match=r"absent.jsonl', allowed: .*examples.helpful_harmless.make DATA"):
        baselines.load_pairs(config)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "JSON of type string"),
        ({"prompt": [USER]}, "a key `chosen`"),
        ({**PAIR, "prompt": "Why?"}, "`prompt` of type string"),
        ({**PAIR, "prompt": []}, "roles none"),
        ({**PAIR, "prompt": [USER, OTHER]}, "roles user, assistant"),
        ({**PAIR, "chosen": [OTHER, OTHER]}, "`chosen` with 2 messages"),
        ({**PAIR, "rejected": [{"role": "assistant"}]}, "a key `content`"),
        ({**PAIR, "rejected": [{**OTHER, "name": "x"}]}, "`rejected\\[0\\].name`"),
    ],
)
def test_invalid_pair_is_refused_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    file = _write(tmp_path, data.PAIRS, PAIR, row)
    with pytest.raises(DataError, match=f"^{file}:2: .*{message}"):
        make.make(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**RANKING, "responses": []}, "no `responses`"),
        ({**RANKING, "responses": [{"text": "Done."}]}, "a key `score`"),
        ({"responses": RANKING["responses"]}, "a key `prompt`"),
    ],
)
def test_invalid_ranking_is_refused_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    file = _write(tmp_path, data.RANKINGS, RANKING, row)
    with pytest.raises(DataError, match=f"^{file}:2: .*{message}"):
        instructions.load(file)


def test_truncated_and_empty_files_are_errors(tmp_path: Path) -> None:
    file = _write(tmp_path, data.PAIRS, *[PAIR] * 50)
    whole = file.read_bytes()
    for content, message in ((whole[:-20], "a damaged gzip"), (b"", "an empty file"), (b"\x00\xff", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            data.pairs(file)


def test_damaged_kept_file_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "kept.json"
    assert kept.read(file, "one") is None
    kept.write(file, "one", {"log_odds": [1, 2]})
    assert kept.read(file, "another") is None
    assert kept.read(file, "one") == {"digest": "one", "log_odds": [1, 2]}
    assert not caplog.records
    for content in (file.read_bytes()[:-4], b"[]", b"{}", b"\xff"):
        file.write_bytes(content)
        assert kept.read(file, "one") is None
        assert f"{file} is damaged" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--picture", "x.txt"], "argument --picture: got 'x.txt', allowed: a .svg or .png file"),
        (
            ["--picture", "absent/x.svg"],
            "argument --picture: got 'absent/x.svg', allowed: a .svg or .png file",
        ),
        (["--penalty", "nan"], "a finite --penalty above 0"),
        (["--penalty", "0"], "a finite --penalty above 0"),
    ],
)
def test_invalid_flags_are_refused_before_a_model_reads(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        ai_feedback.main([str(tmp_path), str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err
