"""Run every Python block of docs/python.md, in order, against real services."""

from __future__ import annotations

import re
from pathlib import Path

from tests.service_process import SharedServices

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_python_blocks_of_the_page_run(shared: SharedServices, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    at = shared.addresses("reward", "policy")
    names: dict[str, object] = {}
    for block in blocks:
        code = block.replace("localhost:5002", at["reward"]).replace("localhost:5001", at["policy"])
        exec(compile(code, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert re.search(r"a labeler prefers the first with probability 0\.\d\d", shown)
    assert "Scores(scores=(" in shown
