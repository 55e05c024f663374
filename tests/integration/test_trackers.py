"""W&B and MLflow themselves, without a network: figures, settings, and a stage that continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAGE = """
import sys
from fairlead.config import load, parse_overrides
from trainer.experiments.choice import open_logs
from trainer.tracking import Tracker

runs, first, fails = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fails"
config = load(None, overrides=parse_overrides([
    f"runs={runs}", "name=tried", 'observe.trackers=["wandb","mlflow"]', "observe.tensorboard=false",
    "observe.tracker_project=ours", "ppo.updates=4", "queue.redis_password=hunter22",
]))
with Tracker("ppo", config.folder, total=4, first_step=first,
             logs=open_logs("ppo", config, first_step=first)) as tracker:
    for step in range(first + 1, first + 4):
        tracker.record(step, {"reward": step + first / 10, "kl": float("nan")})
    if fails:
        raise RuntimeError("interrupted")
"""

MLFLOW = """
import os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
[experiment] = [each for each in client.search_experiments() if each.name == "ours"]
[run] = client.search_runs([experiment.experiment_id])
rewards = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "ppo/reward")]
import json
data = {"params": run.data.params, "tags": run.data.tags}
print(json.dumps({"status": run.info.status, "rewards": rewards, **data}))
"""

WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

def records(content):
    # LevelDB's log format, after a header of 7 bytes that counts as a part of the first block of 32 KiB.
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""

found = {"rewards": [], "id": "", "config": {}}
for record in records(Path(sys.argv[1]).read_bytes()):
    if record.HasField("run"):
        found["id"], found["group"] = record.run.run_id, record.run.run_group
        found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    if record.HasField("history"):
        pairs = [("".join(item.nested_key) or item.key, item.value_json) for item in record.history.item]
        items = {key: json.loads(value) for key, value in pairs}
        found["rewards"].append([items["step"], items["ppo/reward"]])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_figures_reach_both_tools_and_a_stage_that_continues_keeps_its_run(tmp_path: Path):
    target = tmp_path / "packages"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        target,
    ]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "wandb", "mlflow-skinny"], check=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{ROOT}:{target}",
        "WANDB_MODE": "offline",
    }

    def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    assert "interrupted" in python(STAGE, tmp_path, 0, "fails").stderr
    folder = tmp_path / "tried"
    ids = json.loads((folder / "experiments.json").read_text())
    assert [each["finished"] for each in ids.values()] == [False, False]
    again = python(STAGE, tmp_path, 1, "ends")
    assert again.returncode == 0, again.stderr
    after = json.loads((folder / "experiments.json").read_text())
    assert {key: (value["id"], True) for key, value in ids.items()} == {
        key: (value["id"], value["finished"]) for key, value in after.items()
    }
    shown = json.loads(python(MLFLOW, (folder / "mlruns").as_uri()).stdout)
    assert shown["status"] == "FINISHED"
    assert sorted(shown["rewards"]) == [[1, 1.0], [2, 2.0], [2, 2.1], [3, 3.0], [3, 3.1], [4, 4.1]]
    assert shown["params"]["ppo.updates"] == "4"
    assert shown["tags"]["fairlead.run"] == "tried"
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    first, second = (json.loads(python(WANDB, file).stdout) for file in files)
    assert (first["id"], first["group"]) == (second["id"], "tried")
    assert first["rewards"] == [[1, 1.0], [2, 2.0], [3, 3.0]]
    assert second["rewards"] == [[2, 2.1], [3, 3.1], [4, 4.1]]
    assert first["config"]["ppo"]["updates"] == 4
    everything = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in everything if b"hunter22" in path.read_bytes()] == []
