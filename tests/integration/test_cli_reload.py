"""`fairlead reload` with a real reward process: swaps, canaries, refusals, a watched folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from fairlead import RewardClient
from fairlead.cli.main import app
from tests.tiny import tiny_reward_model


def publish(model: Path, place: Path) -> None:
    shutil.copytree(model, place.with_name("_aside"))
    place.with_name("_aside").rename(place)


def reload(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["reload", *map(str, arguments)])
    return done.exit_code, done.output


def test_reload_replaces_the_model_of_a_running_service(start, tmp_path):
    first, second = (tiny_reward_model(tmp_path / name, seed=seed) for seed, name in ((1, "one"), (2, "two")))
    versions = tmp_path / "versions"
    versions.mkdir()
    publish(first, versions / "v1")
    settings = {"reward.allow_reload": "always", "reward.watch": "true", "reward.watch_seconds": 0.05}
    service = start("reward", versions, **settings)
    service.wait_for("/readyz")
    address = ("--address", service.address)

    def served() -> list[dict]:
        code, output = reload(*address, "--json")
        assert code == 0, output
        return json.loads(output)[service.address]

    assert [one["model_id"] for one in served()] == [str(versions / "v1")]
    code, output = reload(second, "--canary", 0.25, *address)
    assert code == 0
    assert "75.00%" in output
    assert "25.00%" in output
    assert reload("--share", 0.5, *address)[0] == 0
    assert [one["share"] for one in served()] == [0.5, 0.5]
    assert reload("--promote", *address)[0] == 0
    assert [one["model_id"] for one in served()] == [str(second)]
    assert reload(first, *address)[0] == 0
    with RewardClient(service.address) as client:
        version = client.score([("w1", "w2")]).model_version
    assert served()[0]["model_version"] == version

    code, output = reload(tmp_path / "none", *address)
    assert code == 2
    assert "path: got" in output
    code, output = reload("--promote", *address)
    assert code == 1
    assert "there is no canary" in output
    assert reload("--promote", "--abandon", *address)[0] == 2
    assert reload("--canary", 0.5, *address)[0] == 2

    publish(second, versions / "v2")
    with RewardClient(service.address) as client:
        service.until(lambda: client.info().model.model_id == str(versions / "v2"))
    assert service.stop() == 0
