"""What a stage says where it is started: models that are missing, and warnings once it has finished."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from fairlead.config import load
from fairlead.errors import ConfigError
from fairlead.local.run import processes, repeat_warnings, run_stage, services_of


def test_warnings_of_a_finished_stage_are_repeated_once_each(tmp_path, caplog):
    """They are in the log of the process, which nobody may read."""
    file = tmp_path / "trainer.log"

    def line(time: str, level: str, message: str, logger: str = "trainer.ppo.train") -> str:
        time = f"2026-01-0{time}T00:00:00.5Z"
        return json.dumps({"time": time, "level": level, "logger": logger, "message": message})

    entries = [
        line("1", "warning", "of an earlier start"),
        "--- start 2 of trainer",
        line("2", "info", "fine"),
        line("2", "warning", "ppo continues a run", "fairlead.inputs.stage_inputs"),
    ]
    entries += [line("2", "warning", "scores are clipped")] * 3 + ["[1]", "Traceback"]
    file.write_text("\n".join(entries) + "\n")
    repeat_warnings(file, since="2026-01-02T00:00:00")
    assert [record.getMessage() for record in caplog.records] == ["trainer: scores are clipped"]
    caplog.clear()
    file.write_text("".join(line("3", "warning", f"number {number}") + "\n" for number in range(8)))
    repeat_warnings(file, since="2026-01-02T00:00:00")
    assert caplog.records[4].getMessage() == "trainer: number 4"
    assert caplog.records[5].getMessage() == f"trainer: 3 more warnings in {file}"
    repeat_warnings(tmp_path / "none.log", since="")


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("reward_model", "reward_model.path"), ("preference", "preference.path"), ("ppo", "policy.path")],
)
def test_a_stage_needs_only_the_models_that_it_starts_from(tmp_path, stage: str, missing: str):
    """The training of a reward model needs none; its process only has a similar name to the service."""
    given = load(overrides={"runs": str(tmp_path)})
    with pytest.raises(ConfigError, match=rf"^{missing}: got 'no path'"):
        run_stage(given, stage, console=Console(file=StringIO()))
    specs, _, _ = processes(given, stage)
    services = services_of(specs)
    assert services == (frozenset(("policy", "reward", "reference")) if stage == "ppo" else frozenset())
