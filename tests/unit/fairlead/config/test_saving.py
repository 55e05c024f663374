"""Files that are replaced atomically: what a failure leaves."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fairlead.config.saving import replace_text


def test_replacement_that_fails_leaves_only_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    replace_text(file, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            replace_text(file, "x" * 2_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "old"
    replace_text(file, "new")
    assert file.read_text() == "new"
