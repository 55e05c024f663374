"""The stages of a quickstart: seconds of each, and the CPU seconds of every process that it started.

Read from the folder of a finished quickstart; one of a single round is run if there is none.
"""

from __future__ import annotations

import json

from benchmarks import quickstart
from benchmarks.result import Result, Settings
from fairlead.errors import ConfigError


def run(settings: Settings) -> dict[str, Result]:
    """Return a result per stage, and their sum; the ratio is 1 if one core is always busy.

    Raises:
        ConfigError: if the quickstart has not finished, or has no record of CPU times.
    """
    source = quickstart.ensure(settings.source)
    kept = json.loads((source / "stages.json").read_text())
    seconds, cpu_seconds = kept["seconds"], kept.get("cpu_seconds", {})
    missing = sorted(seconds.keys() - cpu_seconds.keys())
    if missing:
        raise ConfigError(
            "--run",
            got=f"{source}, without CPU times of {', '.join(missing)}",
            allowed="a new quickstart (`fairlead quickstart --fresh`), or a folder that does not exist yet",
        )
    rows = {name: (seconds[name], cpu_seconds[name]) for name in seconds}
    rows["whole"] = (sum(seconds.values()), sum(cpu_seconds.values()))
    return {
        f"stages_{name.replace('-', '_')}": Result(clock, "s", cpu, "its CPU time")
        for name, (clock, cpu) in rows.items()
    }
