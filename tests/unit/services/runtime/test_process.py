"""The process of a service: its flags and exit codes."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from fairlead.errors import (
    ConfigError,
    Fenced,
    ModelLoadError,
    QueueMisconfigured,
    Stalled,
    Unavailable,
)
from services.runtime import process


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a", got=1, allowed="2"), 2),
        (ModelLoadError("m"), 2),
        (QueueMisconfigured("q"), 2),
        (Fenced("f"), 3),
        (Stalled("s"), 4),
        (Unavailable("u"), 1),
        (RuntimeError("r"), 1),
    ],
)
def test_exit_codes(error, code, capsys, caplog):
    async def run(config) -> None:
        raise error

    assert process.main("reward", run, ["--set", "seed=3"], registry=CollectorRegistry()) == code
    stderr = capsys.readouterr().err
    if not isinstance(error, RuntimeError):
        assert stderr.splitlines()[-1] == f"reward: {error}"


def test_flags_set_the_configuration(tmp_path):
    (tmp_path / "run.toml").write_text('name = "tried"\n[reward]\nmax_sequence_tokens = 9\n')
    seen = []

    async def run(config) -> None:
        seen.append((config.name, config.reward.max_sequence_tokens, config.reward.dtype))

    arguments = ["--config", str(tmp_path / "run.toml"), "--set", "reward.dtype=bfloat16"]
    assert process.main("reward", run, arguments, registry=CollectorRegistry()) == 0
    assert seen == [("tried", 9, "bfloat16")]
    assert process.main("reward", run, ["--set", "reward.dtype"], registry=CollectorRegistry()) == 2
    assert process.main("reward", run, ["--set", "reward.dtyp=float32"], registry=CollectorRegistry()) == 2
    assert len(seen) == 1
