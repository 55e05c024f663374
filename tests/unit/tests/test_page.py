"""The runner of documentation pages accepts correct pages and rejects wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.page import Reader, assert_prints, blocks


@pytest.mark.parametrize(
    "expected",
    [
        ["loss 0.5 after 3 steps", "It fits."],
        ["loss -1,234.5e-7 after 30 steps", "It fits."],
        ["loss …", "It fits."],
        ["…", "It fits."],
        ["…", "loss 0.41 …", "…", "It   fits.", "…"],
        [],
    ],
)
def test_numbers_spaces_and_omissions_may_differ(expected: list[str]) -> None:
    assert_prints("run", "\nloss 0.41   after 20 steps\nIt fits.\n", expected)


@pytest.mark.parametrize(
    "expected",
    [
        ["loss 0.41 after 20 steps"],
        ["It fits."],
        ["loss 0.41 after 20 steps", "It does not fit."],
        ["loss 0.41 after many steps", "It fits."],
        ["It fits.", "…"],
        ["…", "It fits.", "loss 0.41 after 20 steps"],
    ],
)
def test_words_and_lines_must_not_differ(expected: list[str]) -> None:
    with pytest.raises(AssertionError, match="the page says"):
        assert_prints("run", "loss 0.41 after 20 steps\nIt fits.\n", expected)


def test_page_runs_in_order_and_in_its_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Words.\n\n```console\n$ echo one > a.txt\n$ cat \\\n    a.txt\none\n```\n"
        "```python\n# read.py\nprint(open('a.txt').read())\n```\n"
        "<!-- test: slow -->\n```console\n$ false\n```\n"
        "```console\n$ python read.py\none\n```\n"
    )
    (tmp_path / "here").mkdir()
    reader = Reader(tmp_path / "here")
    reader.read(page, slow=False)
    assert list(reader.printed) == ["echo one > a.txt", "cat a.txt", "python read.py"]
    with pytest.raises(AssertionError, match=r"\$ false"):
        reader.read(page, slow=True)
    page.write_text(page.read_text().replace("read.py\none", "read.py\ntwo"))
    with pytest.raises(AssertionError, match="the page says"):
        reader.read(page, slow=False)


def test_unchecked_block_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```yaml\na: 1\n```\n")
    (tmp_path / "here").mkdir()
    with pytest.raises(AssertionError, match="a block of yaml"):
        Reader(tmp_path / "here").read(page, slow=False)
    page.write_text("```\nno language\n```\n")
    with pytest.raises(AssertionError, match="a fence outside every block"):
        blocks(page)
