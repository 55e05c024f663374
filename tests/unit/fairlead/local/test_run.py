"""What a stage that has finished says where it was started."""

from __future__ import annotations

import json

from fairlead.local.run import repeat_warnings


def test_warnings_of_a_finished_stage_are_repeated_once_each(tmp_path, caplog):
    """They are in the log of the process, which nobody may read."""
    file = tmp_path / "trainer.log"

    def line(time: str, level: str, message: str) -> str:
        return json.dumps({"time": f"2026-01-0{time}T00:00:00.5Z", "level": level, "message": message})

    entries = [
        line("1", "warning", "of an earlier start"),
        "--- start 2 of trainer",
        line("2", "info", "fine"),
    ]
    entries += [line("2", "warning", "scores are clipped")] * 3 + ["[1]", "Traceback"]
    file.write_text("\n".join(entries))
    repeat_warnings(file, since="2026-01-02T00:00:00")
    assert [record.getMessage() for record in caplog.records] == ["trainer: scores are clipped"]
    caplog.clear()
    file.write_text("\n".join(line("3", "warning", f"number {number}") for number in range(8)))
    repeat_warnings(file, since="2026-01-02T00:00:00")
    assert caplog.records[4].getMessage() == "trainer: number 4"
    assert caplog.records[5].getMessage() == f"trainer: 3 more warnings in {file}"
    repeat_warnings(tmp_path / "none.log", since="")
