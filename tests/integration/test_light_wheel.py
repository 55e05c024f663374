"""The wheel in a clean environment: it is complete, and without torch it scores with a running service."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairlead
from fairlead import RewardClient
from tests.service_process import Starter
from tests.tiny import tiny_causal_lm, tiny_reward_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("fairlead", "services", "trainer")
OFFLINE = ("Could not find a version", "No matching distribution", "Connection", "Temporary failure")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pip(python: Path | str, *arguments: object) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(saying in done.stderr for saying in OFFLINE):
        pytest.skip(f"no package index here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program folder of an environment with only the wheel and its required dependencies."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, with_pip=True)
    pip(folder / "bin" / "python", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return folder / "bin"


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a reward service of this environment, which has torch."""
    folder = tmp_path_factory.mktemp("reward")
    start = Starter(folder)
    try:
        process = start("reward", tiny_reward_model(folder / "model"))
        process.until(lambda: process.get("/readyz")[0] == 200, seconds=240)
        yield process.address
    finally:
        start.stop()


def run(*command: object, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_contains_all_tracked_package_files(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
        (entries,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "fairlead = fairlead.cli.main:app" in archive.read(entries).decode()
    assert (about["Name"], about["Version"]) == ("fairlead-rlhf", fairlead.__version__)
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(tracked) > 150
    assert [path for path in tracked if path not in names] == []
    kinds = {Path(path).suffix or Path(path).name for path in tracked}
    assert {".py", ".pyi", ".lua", ".j2", ".typed"} <= kinds
    # No other files: no tests, no examples, no caches.
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def test_light_install_has_no_torch_and_shows_its_version(light: Path, tmp_path: Path):
    assert run(light / "python", "-c", "import torch", cwd=tmp_path).returncode == 1
    assert run(light / "fairlead", "--version", cwd=tmp_path).stdout == f"fairlead {fairlead.__version__}\n"
    assert run(light / "fairlead", "--help", cwd=tmp_path).returncode == 0
    program = (
        "from importlib.metadata import distribution, packages_distributions\n"
        "print(packages_distributions()['fairlead'], distribution('fairlead-rlhf').version)"
    )
    shown = run(light / "python", "-c", program, cwd=tmp_path)
    assert shown.stdout == f"['fairlead-rlhf'] {fairlead.__version__}\n"
    # The modules that a worker and a client need can be imported, and the Lua scripts are there.
    program = (
        "import services.rollout_worker.worker, services.runtime.server\n"
        "import fairlead.clients, fairlead.local.run\n"
        "from importlib.resources import files\n"
        "print(len(list((files('fairlead.transports.rollouts') / 'lua').iterdir())))"
    )
    shown = run(light / "python", "-c", program, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lua = len(list((ROOT / "fairlead" / "transports" / "rollouts" / "lua").glob("*.lua")))
    assert int(shown.stdout) == lua


def test_light_install_scores_with_a_running_service(light: Path, reward: str, tmp_path: Path):
    given = [{"prompt": "w1 w2", "response": f"w{n} w3"} for n in range(20)]
    lines = "".join(json.dumps(line) + "\n" for line in given)
    shown = run(light / "fairlead", "score", "--address", reward, cwd=tmp_path, given=lines)
    assert shown.returncode == 0, shown.stderr
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    with RewardClient(reward) as client:
        expected = client.score([(line["prompt"], line["response"]) for line in given])
    assert [line["score"] for line in found] == pytest.approx(expected.scores, abs=1e-5)

    program = (
        "import sys; from fairlead import RewardClient\n"
        "with RewardClient(sys.argv[1]) as reward:\n"
        "    print(reward.score([('w1 w2', 'w0 w3')]).scores[0], reward.info().model.vocabulary_size)\n"
        "print('torch' in sys.modules)"
    )
    shown = run(light / "python", "-c", program, reward, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    score, vocabulary, torch = shown.stdout.split()
    assert float(score) == pytest.approx(expected.scores[0], abs=1e-5)
    assert (int(vocabulary), torch) == (60, "False")


def test_light_install_plans_and_names_missing_extras(light: Path, tmp_path: Path):
    model = tiny_causal_lm(tmp_path / "model")
    flags = ("--set", f"policy.path={model}", "--set", f"model.path={model}", "--json")
    shown = run(light / "fairlead", "plan", *flags, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert [stage["stage"] for stage in json.loads(shown.stdout)["stages"]] == ["sft", "reward-model", "ppo"]

    for verb in ("sft", "ppo"):
        shown = run(light / "fairlead", verb, cwd=tmp_path)
        assert shown.returncode == 2
        assert shown.stderr.startswith("error: this verb needs torch, ")
        advice = "which a light install does not include: pip install 'fairlead-rlhf[train]'\n"
        assert shown.stderr.endswith(advice)
    shown = run(light / "fairlead", "quickstart", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: the quickstart needs a source checkout;")
