"""A watched folder: the newest model is served once it is complete and can score; nothing else is."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.errors import ConfigError
from services.reward import model_watcher
from services.reward.model_watcher import ModelWatcher
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import reward_service
from tests.waiting import until

INTERVAL = 0.02


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return [tiny_reward_model(tmp_path_factory.mktemp(f"reward{seed}"), seed=seed) for seed in (1, 2, 3)]


def publish(model: Path, place: Path) -> None:
    """Copy a model under a temporary name, then rename it."""
    aside = place.with_name(f".{place.name}")
    shutil.copytree(model, aside)
    aside.rename(place)


def versions(*names: str, folder: Path) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["v2", "v10", "v9"], "v10"),
        (["2026-01-31", "2026-02-01"], "2026-02-01"),
        (["step-900", "step-1000"], "step-1000"),
        ([".v3", "_v4", "v1"], "v1"),
        (["1-20", "2-3"], "2-3"),
    ],
)
def test_last_version_by_name_is_the_newest(tmp_path, names, expected):
    folder = versions(*names, folder=tmp_path)
    (tmp_path / "zzz").mkdir()
    (tmp_path / "zzz.txt").write_text("no model")
    assert model_watcher.newest(folder).path == (tmp_path / expected).resolve()


def test_latest_link_or_file_names_the_newest(tmp_path):
    folder = versions("v1", "v2", "v3", folder=tmp_path)
    (folder / "latest").symlink_to("v2")
    assert model_watcher.newest(folder).path == (folder / "v2").resolve()
    (folder / "latest").unlink()
    (folder / "latest").write_text("v1\n")
    assert model_watcher.newest(folder).path == (folder / "v1").resolve()
    for nonsense in (b"", b"v9", b"\xff\xfe\x00"):
        (folder / "latest").write_bytes(nonsense)
        assert model_watcher.newest(folder) is None


def test_folder_that_is_a_model_is_the_newest(tmp_path):
    assert model_watcher.newest(versions("v1", folder=tmp_path) / "v1").path == (tmp_path / "v1").resolve()
    with pytest.raises(ConfigError, match="reward.path: got '.*none', allowed: a local folder with a model"):
        model_watcher.first(str(tmp_path / "none"))


@asynccontextmanager
async def watched(folder: Path):
    async with reward_service(model_watcher.first(str(folder))) as world:
        watcher = ModelWatcher(folder, world.scoring, interval_seconds=INTERVAL)
        task = asyncio.create_task(watcher.run())
        try:
            yield world
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_newer_version_is_served_and_broken_one_is_not(models, tmp_path, caplog):
    publish(models[0], tmp_path / "v1")
    async with watched(tmp_path) as world:
        first = world.version
        publish(models[1], tmp_path / "v2")
        await until(lambda: world.version != first)
        assert world.scoring.info.model.model_id == str(tmp_path.resolve() / "v2")
        second = world.version
        (tmp_path / "v3").mkdir()
        (tmp_path / "v3" / "config.json").write_text("{}")
        await until(lambda: "cannot load" in caplog.text and "v3, the served model is kept" in caplog.text)
        assert world.version == second
        publish(models[2], tmp_path / "v4")
        await until(lambda: world.version not in (first, second))
        assert world.scoring.info.model.model_id.endswith("v4")


async def test_latest_can_point_back_to_an_older_version(models, tmp_path):
    publish(models[0], tmp_path / "v1")
    publish(models[1], tmp_path / "v2")
    async with watched(tmp_path) as world:
        newer = world.version
        (tmp_path / ".next").symlink_to("v1")
        os.replace(tmp_path / ".next", tmp_path / "latest")
        await until(lambda: world.version != newer)
        assert world.scoring.info.model.model_id.endswith("v1")


async def test_model_replaced_in_place_is_loaded_again(models, tmp_path):
    place = tmp_path / "model"
    publish(models[0], place)
    async with watched(place) as world:
        first = world.version
        place.rename(tmp_path / "old")
        publish(models[1], place)
        await until(lambda: world.version != first)


async def test_incomplete_model_is_not_loaded(models, tmp_path, caplog):
    """A file that grows between any two checks: no load is attempted, so none fails."""
    publish(models[0], tmp_path / "v1")
    async with watched(tmp_path) as world:
        first = world.version
        (tmp_path / "v2").mkdir()
        (tmp_path / "v2" / "config.json").write_text("{")
        checks = 0
        newest = model_watcher.newest

        def counted(folder):
            nonlocal checks
            checks += 1
            with (tmp_path / "v2" / "model.safetensors").open("ab") as file:
                file.write(b"x")
            return newest(folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_watcher, "newest", counted)
            await until(lambda: checks > 10)
        assert "cannot load" not in caplog.text
        assert world.version == first
        shutil.rmtree(tmp_path / "v2")
