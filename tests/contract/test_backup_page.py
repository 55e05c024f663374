"""docs/backup.md: its commands for one machine restore what they backed up; those for a cluster parse."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
import typer

from fairlead.cli.main import app
from fairlead.errors import CorruptCheckpoint, InvalidInput
from fairlead.k8s import backup
from fairlead.k8s.manifests import checkout
from fairlead.transports.weights.base import Ancestor
from fairlead.types import WeightVersion
from tests.contract.test_kubernetes_page import parse
from tests.rendered import needs_kubectl, of_kind, rendered, templates
from trainer import lineage
from trainer.checkpoint import CheckpointStore

PAGE = (checkout().parent / "docs" / "backup.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
BACK_UP, RESTORE_RUN, RESTORE_STORE, *ON_A_CLUSTER = BLOCKS
LINEAGE = (Ancestor(1, 0),)


def save(root: Path, update: int) -> None:
    weights = {"policy": {"w": torch.full((4,), float(update))}}
    CheckpointStore(root / "checkpoints").save(
        WeightVersion(1, update), tensors=weights, state={"update": update}
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "runs" / "help"
    lineage.claim(root / "checkpoints", at_least=1)
    lineage.record_resume(root / "checkpoints", 1, resumed_from=0)
    save(root, 5)
    for name in ("ledger.jsonl", "sft/model.safetensors", "weights/1-5/w", "weight_caches/5001/w"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def shell(block: str, folder: Path) -> None:
    python = shlex.quote(sys.executable)
    script = re.sub(r"^python ", f"{python} ", block, flags=re.MULTILINE)
    subprocess.run(["bash", "-euc", script], cwd=folder, check=True, timeout=120)


def test_commands_of_the_page_restore_a_run_and_a_store_in_use(tmp_path, run):
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("CREATE TABLE judgments (text)")
        store.execute("INSERT INTO judgments VALUES ('before')")
        store.execute("BEGIN")
        store.execute("INSERT INTO judgments VALUES ('open')")
        shell(BACK_UP, tmp_path)
        store.execute("COMMIT")
    save(run, 10)
    shell(RESTORE_RUN, tmp_path)
    shell(RESTORE_STORE, tmp_path)
    found = CheckpointStore(run / "checkpoints").load_newest(LINEAGE)
    assert found is not None
    assert (found.version, found.state) == (WeightVersion(1, 5), {"update": 5})
    assert torch.equal(found.tensors["policy"]["w"], torch.full((4,), 5.0))
    assert lineage.read(run / "checkpoints") == LINEAGE
    assert (run / "sft" / "model.safetensors").read_text() == "sft/model.safetensors"
    assert not (run / "weights").exists(), "the trainer publishes them again"
    assert (tmp_path / "runs" / "help.old" / "checkpoints" / "1-10").is_dir()
    with closing(sqlite3.connect(tmp_path / "feedback.db")) as store:
        assert store.execute("SELECT text FROM judgments").fetchall() == [("before",)]


def test_backups_link_what_is_unchanged_and_only_the_newest_are_kept(tmp_path, run):
    target = tmp_path / "backups"
    first = backup.back_up_runs(run.parent, target, keep=2)
    (run / "ledger.jsonl").write_text("more lines")
    shutil.rmtree(run / "checkpoints" / "1-5")
    save(run, 10)
    (target / ".partial-20200101T000000.000000Z").mkdir()
    second = backup.back_up_runs(run.parent, target, keep=2)
    model = Path("help") / "sft" / "model.safetensors"
    assert (first / model).samefile(second / model)
    assert (first / "help" / "ledger.jsonl").read_text() == "ledger.jsonl"
    assert (second / "help" / "ledger.jsonl").read_text() == "more lines"
    assert not (second / "help" / "checkpoints" / "1-5").exists()
    third = backup.back_up_runs(run.parent, target, keep=2)
    assert sorted(target.iterdir()) == [second, third]


def test_stage_that_finishes_meanwhile_does_not_end_a_backup(tmp_path, run):
    """It deletes all its checkpoints, and their folder."""
    root = run / "checkpoints_sft"
    stopped = threading.Event()

    def stages() -> None:
        while not stopped.is_set():
            store = CheckpointStore(root)
            for update in (1, 2):
                tensors = {name: {"w": torch.zeros(4)} for name in "abcdefgh"}
                store.save(WeightVersion(1, update), tensors=tensors, state={})
            store.forget()
            shutil.rmtree(root)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(stages)
        try:
            seen = set()
            for _ in range(20):
                made = backup.back_up_runs(run.parent, tmp_path / "backups", keep=1) / "help"
                assert (made / "checkpoints" / "1-5").is_dir()
                for found in (made / "checkpoints_sft").glob("1-*"):
                    seen.add(found.name)
                    assert len(list(found.iterdir())) == 10
        finally:
            stopped.set()
        running.result()
    assert seen


def test_store_whose_copy_does_not_fit_is_not_called_invalid(tmp_path):
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as store:
        store.execute("CREATE TABLE judgments (text)")
        store.execute("INSERT INTO judgments VALUES (?)", ("x" * 100_000,))
    first = backup.back_up_store(tmp_path / "feedback.db", tmp_path / "backups", keep=2)
    script = (
        "import resource, sys; from fairlead.k8s import backup; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        "sys.exit(backup.main(['store', *sys.argv[1:]]))"
    )
    arguments = [str(tmp_path / "feedback.db"), str(tmp_path / "backups")]
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert re.search(r"feedback\.db cannot be copied to .*; earlier backups are unchanged", ended.stderr)
    assert list((tmp_path / "backups").iterdir()) == [first]


def test_damage_leaves_no_backup(tmp_path, run):
    (run / "checkpoints" / "1-5" / "policy.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptCheckpoint, match=r"1-5/policy\.safetensors"):
        backup.back_up_runs(run.parent, tmp_path / "backups", keep=2)
    assert list((tmp_path / "backups").iterdir()) == []
    (run / "checkpoints" / "1-5" / "policy.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"1-5/policy\.safetensors.*does not exist"):
        backup.back_up_runs(run.parent, tmp_path / "backups", keep=2)
    (tmp_path / "no.db").write_text("no database")
    with pytest.raises(InvalidInput, match=r"no\.db \(file is not a database\)"):
        backup.back_up_store(tmp_path / "no.db", tmp_path / "backups", keep=2)
    assert backup.main(["store", str(tmp_path / "absent.db"), str(tmp_path / "backups")]) == 2
    assert list((tmp_path / "backups").iterdir()) == []


@needs_kubectl
def test_commands_on_a_cluster_name_objects_that_exist_and_its_jobs_run_the_commands_of_the_page():
    objects = rendered("kind, feedback, backup")
    kinds = {
        "deploy": of_kind(objects, "Deployment"),
        "cronjob": of_kind(objects, "CronJob"),
        "statefulset": of_kind(objects, "StatefulSet"),
    }
    text = "".join(ON_A_CLUSTER)
    named = re.findall(r"\b(deploy|cronjob|statefulset)/([\w-]+)", text)
    assert len(named) >= 5
    assert [name for kind, name in named if name not in kinds[kind]] == []
    for line in text.splitlines():
        if line.startswith("fairlead "):
            parse(typer.main.get_command(app), "fairlead", shlex.split(line)[1:])
    for name, what in (("backup", "runs"), ("backup-feedback", "store")):
        (found,) = templates(objects)[name]["spec"]["containers"]
        mounts = {one["mountPath"] for one in found["volumeMounts"]}
        _, _, module, kind, source, target, *_ = found["args"]
        assert (module, kind) == ("fairlead.k8s.backup", what)
        assert all(any(path.startswith(f"{mount}/") for mount in mounts) for path in (source, target))
        assert f"python -m {module} {kind} " in BACK_UP
