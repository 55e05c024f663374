"""Real lack of memory and of disk space: the errors, and that the run continues once it is fixed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairlead.config.training import PpoSection
from fairlead.errors import OutOfMemory, OutOfSpace, ReadOnlyDisk, exit_code
from tests.tiny import tiny_causal_lm
from trainer import durable, memory

ROOT = Path(__file__).parents[3]


def allocate() -> torch.Tensor:
    return torch.empty(1 << 50, dtype=torch.uint8)


def test_out_of_memory_names_the_settings():
    section = PpoSection(max_micro_batch_tokens=512)
    with pytest.raises(OutOfMemory) as caught, memory.explained_memory_errors("ppo", section):
        allocate()
    assert exit_code(caught.value) == 2
    for part in (
        "ppo.max_micro_batch_tokens (now 512)",
        "ppo.gradient_checkpointing = true",
        "ppo.dtype = 'bfloat16'",
        "ppo.lora.rank = 16",
        "continues from the last checkpoint",
    ):
        assert part in str(caught.value)
    lean = section.model_copy(
        update={
            "gradient_checkpointing": True,
            "dtype": "bfloat16",
            "lora": section.lora.model_copy(update={"rank": 8}),
        }
    )
    with pytest.raises(OutOfMemory) as caught, memory.explained_memory_errors("ppo", lean):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "gradient_checkpointing" not in str(caught.value)
    assert "lora" not in str(caught.value)
    with pytest.raises(RuntimeError, match="^a bug$"), memory.explained_memory_errors("ppo", lean):
        raise RuntimeError("a bug")


_LIMITED = """
import os, re, resource
from fairlead.metrics import StageMetrics
from trainer import stage
from trainer.sft import train as sft

def body(config, gauges, group):
    taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
    resource.setrlimit(resource.RLIMIT_AS, (taken + (150 << 20), resource.RLIM_INFINITY))
    sft.train(config, gauges)

def run(tokens):  # in a forked process, with all imports done
    pid = os.fork()
    if not pid:
        flags = ["--config", "run.toml", "--set", f"sft.max_micro_batch_tokens={tokens}"]
        os._exit(stage.run("sft", body, flags, new_metrics=StageMetrics))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes = run(8192), run(512)
assert codes == (2, 0), codes
"""
_RUN = """
name = "t"
[data]
demonstrations = "d.jsonl"
[model]
path = "base"
[sft]
batch_size = 16
epochs = 1
[observe]
metrics_port = -1
tensorboard = false
"""


@pytest.mark.slow  # the error and its exit code are tested above
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux's own means")
def test_stage_out_of_memory_names_settings_that_help(tmp_path):
    """150 MiB are too little for the activations of 16 sequences of 512 tokens, but enough for one."""
    tiny_causal_lm(tmp_path / "base", num_hidden_layers=6, max_position_embeddings=512)
    words = " ".join(f"w{number % 50}" for number in range(500))
    lines = [{"prompt": f"w{n}", "completion": words} for n in range(18)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.toml").write_text(_RUN)
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "OutOfMemory: sft ran out of memory: lower sft.max_micro_batch_tokens (now 8192)" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "runs" / "t" / "sft" / "model.safetensors").exists()


_FULL_DISK = """
import json, os, sys
from pathlib import Path
from fairlead.errors import OutOfSpace
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.test_train import Run, configured, same, weights
from trainer import durable

disk = Path(sys.argv[1])
model = tiny_causal_lm(disk / "model")
with Run(configured(disk / "whole", model), model) as whole:
    whole.trainer().run()
expected = weights(whole.models)

def fill(done):
    if done == 3:
        left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(left - int(sys.argv[2])))

error_text = ""
with Run(configured(disk / "run", model), model) as run:
    checkpoints = run.config.folder.checkpoints
    try:
        with durable.explained_disk_errors():
            run.trainer().run(on_update=fill)
    except OutOfSpace as error:
        error_text = str(error)
    there = sorted(path.name for path in checkpoints.iterdir() if path.is_dir())
    (disk / "filler").unlink()
    result = run.trainer().run()
resumed = same(weights(run.models), expected)
print(json.dumps({"error": error_text, "there": there, "same": resumed, "result": result}))
"""


def test_limit_of_the_size_of_files_is_explained_and_the_old_file_stays(tmp_path: Path):
    file = tmp_path / "result.json"
    durable.write_json(file, {"old": True})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OutOfSpace, match=r"`ulimit -f`.*raise it.*run the same command again"):
            with durable.explained_disk_errors():
                durable.write_json(file, {"text": "x" * 2_000})
        with pytest.raises(OutOfSpace, match="`ulimit -f`"), durable.explained_disk_errors():
            save_file({"a": torch.zeros(1_000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads(file.read_text()) == {"old": True}


def test_missing_permission_is_explained(tmp_path: Path):
    (tmp_path / "run").mkdir(mode=0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65_534)
        with pytest.raises(ReadOnlyDisk, match=r"Permission denied: .*run.*give user \d+") as caught:
            with durable.explained_disk_errors():
                durable.write_json(tmp_path / "run" / "result.json", {"new": True})
    finally:
        os.seteuid(user)
    assert exit_code(caught.value) == 1
    assert list((tmp_path / "run").iterdir()) == []


# Space for the journal and the next weights but no checkpoint; for the journal only; for neither.
@pytest.mark.parametrize(
    "free_bytes",
    [393_216, pytest.param(16_384, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.slow)],
)
def test_full_disk_costs_only_time(tmp_path, free_bytes):
    in_a_mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*in_a_mount, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare` and the permission to mount a small disk")
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" -c "$3" "$1" "$4"'
    arguments = [str(tmp_path / "disk"), sys.executable, _FULL_DISK, str(free_bytes)]
    ran = subprocess.run(
        [*in_a_mount, script, "sh", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert "is full: free some space, or lower checkpoint.keep" in found["error"]
    assert found["there"] == ["1-2"]  # no partial checkpoint
    assert found["same"]
    result = found["result"]
    assert (result["tasks_trained"], result["tasks_lost"], result["tasks_duplicated"]) == (48, 0, 0)
