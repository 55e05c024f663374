"""Run every Python block of docs/python.md, in order, against real services."""

from __future__ import annotations

import re
from pathlib import Path

from tests.service_process import Starter
from tests.tiny import tiny_causal_lm, tiny_reward_model

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_python_blocks_of_the_page_run(tmp_path, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    start = Starter(tmp_path)
    try:
        settings = {"reward.calibration_temperature": 2.0}
        reward = start("reward", tiny_reward_model(tmp_path / "reward"), **settings)
        policy = start("policy", tiny_causal_lm(tmp_path / "policy"), **{"policy.serve_initial": "true"})
        for process in (reward, policy):
            process.until(lambda ready=process: ready.get("/readyz")[0] == 200, seconds=110)
        names: dict[str, object] = {}
        for block in blocks:
            code = block.replace("localhost:5002", reward.address).replace("localhost:5001", policy.address)
            exec(compile(code, str(PAGE), "exec"), names)
    finally:
        start.stop()
    shown = capsys.readouterr().out
    assert re.search(r"a labeler prefers the first with probability 0\.\d\d", shown)
    assert "Scores(scores=(" in shown
