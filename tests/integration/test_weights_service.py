"""Weights without a shared volume: processes of a weights service and of policies that fetch and relay."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fairlead import PolicyClient
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import SamplingParams, WeightVersion
from tests.service_process import Process, Starter, free_address
from tests.tiny import tiny_causal_lm

SAMPLING = SamplingParams(max_new_tokens=6, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def store(tmp_path: Path) -> FilesystemWeightStore:
    return FilesystemWeightStore(tmp_path / "trainer" / "weights")


class Cluster:
    """Processes without a shared folder, except that of the weights service and the trainer."""

    def __init__(self, folder: Path, store: FilesystemWeightStore, model: Path) -> None:
        self.starter = Starter(folder)
        self.folder, self.store, self.model = folder, store, model
        self.address = free_address()

    def weights(self, **settings: object) -> Process:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        return self.starter("weights", self.store.root, **({"weights.bind": self.address} | named))

    def policy(self, name: str, **settings: object) -> Process:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        values: dict[str, object] = {
            "runs": self.folder / name,
            "weights.transport": "grpc",
            "weights.addresses": f'["{self.address}"]',
            "weights.stall_seconds": 2,
        }
        return self.starter("policy", self.model, **(values | named))


@pytest.fixture
def cluster(tmp_path: Path, store: FilesystemWeightStore, model: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, store, model)
    try:
        yield cluster
    finally:
        cluster.starter.stop()


def publish(store: FilesystemWeightStore, model: Path, version: WeightVersion, *, scale: float = 1.0) -> None:
    state = {name: tensor * scale for name, tensor in load_file(model / "model.safetensors").items()}
    with store.publish(version, parent=None, lineage=(Ancestor(1, 0),)) as folder:
        save_file(state, folder / "model.safetensors")


def metric(process: Process, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", process.get("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


def version_of(process: Process) -> WeightVersion:
    with PolicyClient(process.address, timeout_seconds=30) as client:
        return client.info().weight_version


FROM_PEERS = 'fairlead_weights_fetched_bytes_total{source="peer"}'
FROM_ORIGIN = 'fairlead_weights_fetched_bytes_total{source="origin"}'


def test_late_replica_loads_current_version_and_serves_without_origin(
    cluster: Cluster, store: FilesystemWeightStore, model: Path
) -> None:
    first = cluster.policy("first")
    first.until(lambda: "not loaded" in first.log.read_text())  # there is no weights service yet
    assert first.get("/readyz")[0] == 503
    origin = cluster.weights()
    origin.wait_for("/readyz")
    publish(store, model, WeightVersion(1, 0))
    first.wait_for("/readyz")
    assert version_of(first) == WeightVersion(1, 0)
    publish(store, model, WeightVersion(1, 1), scale=0.5)
    with PolicyClient(first.address, timeout_seconds=30) as client:
        newer = client.generate("w1 w2", SAMPLING, min_version=WeightVersion(1, 1))[0]

    late = cluster.policy("late")
    late.wait_for("/readyz")
    assert version_of(late) == WeightVersion(1, 1)
    assert metric(late, "fairlead_policy_swaps_total") == 1
    assert metric(late, FROM_PEERS) > 0
    assert metric(late, FROM_ORIGIN) == 0
    with PolicyClient(late.address, timeout_seconds=30) as client:
        assert client.generate("w1 w2", SAMPLING)[0] == newer

    origin.popen.send_signal(signal.SIGKILL)
    first.until(lambda: "weights unknown not loaded, 1-1 remain in use" in first.log.read_text())
    for process in (first, late):
        assert process.get("/readyz")[0] == 200
        assert version_of(process) == WeightVersion(1, 1)
    cluster.weights().wait_for("/readyz")
    publish(store, model, WeightVersion(1, 2))
    for process in (first, late):
        process.until(lambda process=process: version_of(process) == WeightVersion(1, 2))
        assert process.stop() == 0


@pytest.mark.slow
def test_fetch_continues_after_weights_service_was_killed(
    cluster: Cluster, store: FilesystemWeightStore, model: Path
) -> None:
    size = (model / "model.safetensors").stat().st_size
    publish(store, model, WeightVersion(1, 0))
    slow = {"weights__max_send_bytes_per_second": size // 4, "weights__chunk_bytes": 1024}
    # A direct connection counts only whole blocks, and the model is smaller than one.
    slow |= {"weights__direct": "false"}
    origin = cluster.weights(**slow)
    origin.wait_for("/readyz")
    process = cluster.policy("only")
    process.until(lambda: metric(process, FROM_ORIGIN) > size // 4)
    origin.popen.send_signal(signal.SIGKILL)
    origin.popen.wait()
    assert process.get("/readyz")[0] == 503
    cluster.weights().wait_for("/readyz")
    process.wait_for("/readyz")
    assert version_of(process) == WeightVersion(1, 0)
    assert process.stop() == 0


@pytest.mark.slow  # what a store does then is tested without processes
def test_full_or_read_only_disk_is_logged_and_old_weights_are_served(
    cluster: Cluster, store: FilesystemWeightStore, model: Path
) -> None:
    cluster.weights().wait_for("/readyz")
    publish(store, model, WeightVersion(1, 0))
    link, real = cluster.folder / "cache", cluster.folder / "disk"
    real.mkdir()
    link.symlink_to(real)
    process = cluster.policy("only", weights__cache=link)
    process.wait_for("/readyz")

    def wait_for_log(text: str) -> None:
        process.until(lambda: text in process.log.read_text())
        assert process.get("/readyz")[0] == 200

    # The kernel limits files of the process to less than the shard, as a full disk would.
    limit = (model / "model.safetensors").stat().st_size - 1_000
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    publish(store, model, WeightVersion(1, 1))
    wait_for_log(
        "weights 1-1 not loaded, 1-0 remain in use: model.safetensors cannot be written: the disk of"
    )
    assert version_of(process) == WeightVersion(1, 0)
    resource.prlimit(
        process.popen.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    process.until(lambda: version_of(process) == WeightVersion(1, 1))
    # Not even root can create folders there.
    link.unlink()
    link.symlink_to("/sys/kernel")
    publish(store, model, WeightVersion(1, 2))
    wait_for_log("weights 1-2 not loaded, 1-1 remain in use: weights 1-2 cannot be written: ")
    assert "is read-only" in process.log.read_text()
    assert version_of(process) == WeightVersion(1, 1)
    link.unlink()
    link.symlink_to(real)
    process.until(lambda: version_of(process) == WeightVersion(1, 2))
    assert process.stop() == 0
