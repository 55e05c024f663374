"""The pods of the rendered manifests as processes of this machine: commands, files, environment, probes.

What a node does is done by hand: mounts become folders, names loopback ports, probes are asked as written.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fairlead.config import RunFolder, load
from fairlead.config.saving import is_selected
from fairlead.k8s.manifests import Manifest, Target, render
from fairlead.k8s.settings import READS
from fairlead.local import valkey
from fairlead.local.addresses import Ports
from fairlead.local.probes import READY_PATH, HttpHealth
from fairlead.transports.rollouts.redis_connection import GROUP, Keys
from fairlead.update_line import last_update
from tests.gateway_world import ask
from tests.integration.ppo_run import make
from tests.rendered import container, data_of, needs_kubectl, probes, templates
from tests.unit.fairlead.rpc.tls_world import Authority
from tests.unit.services.runtime.keys_world import Keys as Keyfile

pytestmark = needs_kubectl

# Valkey's image has this program; the wheel that tests use does not.
_CLIENT = f"""#!{sys.executable}
import os, redis, sys
print(redis.Redis(port=int(os.environ["PORT"]), password=os.environ["REDISCLI_AUTH"]).ping() and "PONG")
"""
ROOT = Path(__file__).parents[2]
PROCESSES = ("policy", "reward", "reference", "trainer", "gateway", "rollout-worker", "feedback", "weights")
_LONGEST_SECONDS = 900
"""Deadline of each wait: only a hang should reach it, not a machine whose cores others use."""
PASSWORDS = {"password": "p" * 16, "keda-username": "keda", "keda-password": "k" * 16}


@dataclass
class Node:
    """Runs the containers of pods as processes of this machine."""

    root: Path
    objects: list[Manifest]
    ports: dict[str, int] = field(default_factory=dict)
    """Replacements on this machine by the text in the manifests."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    secrets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of the Secrets that a person creates."""
    encrypted: bool = False
    """Whether the services use TLS."""

    def start(self, name: str) -> None:
        """Return the container of a process."""
        template = templates(self.objects)[name]
        found = container(template)
        command = [self.here(part, name) for part in (*found.get("command", ()), *found.get("args", ()))]
        command = [sys.executable if part == "python" else part for part in command]
        working = Path(self.here(found.get("workingDir", "/tmp"), name))
        self.mount(name, template)
        with (self.root / f"{name}.log").open("wb") as log:
            environment = self.environment(name, found)
            self.running[name] = subprocess.Popen(
                command, env=environment, cwd=working, stdout=log, stderr=log
            )

    def mount(self, name: str, template: Manifest) -> None:
        """Create the folders of a pod, with the files of its ConfigMaps and Secrets."""
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for mount in container(template)["volumeMounts"]:
            folder = Path(self.here(mount["mountPath"], name))
            folder.mkdir(parents=True, exist_ok=True)
            source = volumes.get(mount["name"], {}).get("configMap")
            for file, text in data_of(self.objects, source["name"]).items() if source else ():
                (folder / file).write_text(self.here(text, name))
            secret = volumes.get(mount["name"], {}).get("secret")
            for file, content in self.secrets[secret["secretName"]].items() if secret else ():
                (folder / file).write_bytes(content)

    def environment(self, name: str, found: dict[str, Any]) -> dict[str, str]:
        """Return the environment of the container; of this machine's it has only what finds programs."""
        values: dict[str, str] = {}
        for source in found.get("envFrom", ()):
            if "secretRef" in source:
                secret = self.secrets[source["secretRef"]["name"]]
                values |= {key: content.decode() for key, content in secret.items()}
            else:
                values |= data_of(self.objects, source["configMapRef"]["name"])
        for variable in found.get("env", ()):
            if "value" in variable:
                values[variable["name"]] = variable["value"]
                continue
            secret = variable["valueFrom"].get("secretKeyRef")
            values[variable["name"]] = PASSWORDS[secret["key"]] if secret else "1"
        here = {key: self.here(value, name) for key, value in values.items()}
        path = os.pathsep.join([str(self.root / "bin"), str(valkey.find_server().parent), os.environ["PATH"]])
        python = os.pathsep.join([str(ROOT / "tests" / "traced"), str(ROOT)])
        reads = {"PYTHONPATH": python, "READS_FILE": str(self.root / f"{name}.reads")}
        return here | reads | {"PATH": path, "HF_HUB_OFFLINE": "1", "PORT": str(self.ports["6379"])}

    def here(self, text: str, name: str) -> str:
        """Return a text of a pod with this machine's paths, names and ports."""

        def folder(match: re.Match[str]) -> str:
            return f"{self.root}/{'volume' if match[0] == '/fairlead' else name}{match[0]}"

        text = re.sub(r"(?<![\w.-])/(?:etc/fairlead|etc/valkey|run/valkey|fairlead|data|tmp)\b", folder, text)
        text = re.sub(
            r"(?:dns:///[a-z]+|0\.0\.0\.0|redis|feedback):(\d+)",
            lambda one: f"127.0.0.1:{self.ports[one[1]]}",
            text,
        )
        text = text.replace("port 6379", f"port {self.ports['6379']}").replace(
            "bind * -::*", "bind 127.0.0.1"
        )
        if text == "5005":
            return str(self.ports[text])
        return str(self.ports[name]) if text == "9090" else text.replace("0.0.0.0", "127.0.0.1")

    async def passes(self, name: str, probe: dict[str, Any]) -> bool:
        """Return whether a probe of the manifest succeeds."""
        if "grpc" in probe:
            address = f"127.0.0.1:{self.ports[str(probe['grpc']['port'])]}"
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            try:
                async with grpc.aio.insecure_channel(address) as channel:
                    answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        if "httpGet" in probe:
            return await _http(self.ports[name], probe["httpGet"]["path"])
        if "tcpSocket" in probe:
            return await _connects(self.ports["6379"])
        environment = self.environment(name, container(templates(self.objects)[name]))
        command = [self.here(part, name) for part in probe["exec"]["command"]]
        done = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.DEVNULL)
        return await done.wait() == 0

    async def until(self, name: str, *kinds: str, seconds: float = _LONGEST_SECONDS) -> None:
        """Wait until probes of a process succeed."""
        wanted = {kind: probe for kind, probe in probes(templates(self.objects)[name]) if kind in kinds}
        # With TLS there is no startup probe.
        assert set(wanted) == set(kinds) - (set() if "startupProbe" in wanted else {"startupProbe"})
        deadline = time.monotonic() + seconds
        for kind, probe in wanted.items():
            while not await self.passes(name, probe):
                assert self.running[name].poll() is None, self.log(name)
                assert time.monotonic() < deadline, f"{kind} of {name}: {self.log(name)}"
                await asyncio.sleep(0.1)

    def log(self, name: str) -> str:
        """Return the end of a process's output."""
        return (self.root / f"{name}.log").read_text(errors="replace")[-2000:]

    def stop(self, name: str) -> int:
        """Send SIGTERM and return the exit code."""
        self.running[name].send_signal(signal.SIGTERM)
        return self.running[name].wait(_LONGEST_SECONDS)


async def _http(port: int, path: str) -> bool:
    if path == "/readyz":
        return await HttpHealth("127.0.0.1", port, READY_PATH)()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    return status.split()[1:2] == [b"200"]


async def _connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _secrets(folder: Path) -> dict[str, dict[str, bytes]]:
    """Create the Secrets as docs/security.md describes."""
    folder.mkdir()
    authority = Authority(folder)
    certificate, key = authority.issue("tls")
    keys = Keyfile(folder)
    shown = keys.add("worker", scopes=("score", "generate"))
    lead = keys.add("lead", scopes=("curate",))
    return {
        "fairlead-tls": {
            "tls.crt": Path(certificate).read_bytes(),
            "tls.key": Path(key).read_bytes(),
            "ca.crt": authority.ca.read_bytes(),
        },
        "fairlead-keys": {"keys.json": keys.path.read_bytes()},
        "fairlead-api-key": {"FAIRLEAD_API_KEY": shown.encode()},
        "lead": {"FAIRLEAD_API_KEY": lead.encode()},
    }


@pytest.fixture(
    params=[
        pytest.param((("keda", "feedback"), 1), marks=pytest.mark.slow),
        pytest.param((("keda", "feedback", "keys", "tls"), 1), marks=pytest.mark.slow),
        pytest.param((("keda", "feedback"), 2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def node(tmp_path: Path, request) -> Iterator[Node]:
    volume = tmp_path / "volume" / "fairlead"
    file = make(volume, updates=2)
    (volume / "data").mkdir()
    shutil.move(volume / "prompts.jsonl", volume / "data")
    components, ranks = request.param
    target = Target(overlay="kind", components=components, namespace="fairlead")
    free, wanted = (
        Ports(),
        ("5001", "5002", "5003", "5004", "5005", "6379", "8080", "8400", *PROCESSES),
    )
    config = load(file, overrides={"ranks.per_node": ranks})
    found = Node(tmp_path, render(config, target), {name: free.free(name) for name in wanted})
    found.secrets, found.encrypted = _secrets(tmp_path / "secrets"), "tls" in components
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "valkey-cli"
    client.write_text(_CLIENT)
    client.chmod(0o755)
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()


# Six processes, four of them with torch: on a busy machine most of the time is spent waiting for cores.
@pytest.mark.timeout(2 * _LONGEST_SECONDS)
async def test_pods_of_a_run_start_become_healthy_and_complete_it(node: Node):
    names = ("files", "redis", "reward", "reference", "policy", "gateway", "rollout-worker", "feedback")
    names += ("weights",)
    for name in names:
        node.start(name)
    await node.until("files", "readinessProbe")
    await node.until("redis", "startupProbe", "livenessProbe", "readinessProbe")
    # Loaded and alive, but not ready: without a trainer it has no weights.
    await node.until("policy", "startupProbe", "livenessProbe")
    ready = dict(probes(templates(node.objects)["policy"]))["readinessProbe"]
    assert not await node.passes("policy", ready)
    await node.until("reward", "startupProbe", "livenessProbe", "readinessProbe")
    await node.until("reference", "startupProbe", "livenessProbe", "readinessProbe")
    await node.until("gateway", "startupProbe", "livenessProbe", "readinessProbe")
    assert await asyncio.to_thread(_scored_indices, node) == [0, 1]
    await node.until("feedback", "startupProbe", "livenessProbe", "readinessProbe")
    assert await asyncio.to_thread(_invited_with, node, "fairlead-api-key") == 403
    assert await asyncio.to_thread(_invited_with, node, "lead") == 201
    await node.until("weights", "startupProbe", "livenessProbe", "readinessProbe")
    node.start("trainer")
    await node.until("trainer", "startupProbe", "livenessProbe")
    await node.until("policy", "readinessProbe")
    await node.until("rollout-worker", "startupProbe", "livenessProbe", "readinessProbe")
    assert await asyncio.to_thread(node.running["trainer"].wait, _LONGEST_SECONDS) == 0, node.log("trainer")
    folder = RunFolder(node.root / "volume" / "fairlead" / "runs" / "tiny")
    assert json.loads(folder.result("ppo").read_text())["updates"] == 2
    # What `fairlead k8s run list` reads.
    assert last_update((node.root / "trainer.log").read_text()) == (2, 2)
    _keda_sees_the_queue_and_nothing_else(node)
    for name in reversed(names[1:]):
        assert await asyncio.to_thread(node.stop, name) == 0, node.log(name)
    store = node.root / "feedback" / "data" / "feedback.db"
    assert (store.stat().st_mode & 0o777, store.read_bytes()[:6]) == (0o600, b"SQLite")
    _processes_read_only_their_settings(node)
    secrets = [one.read_text(errors="replace") for one in node.root.glob("*.log")]
    shown = node.secrets["fairlead-api-key"]["FAIRLEAD_API_KEY"].decode().rpartition("_")[2]
    assert not [text for text in secrets if PASSWORDS["password"] in text or shown in text]


def _processes_read_only_their_settings(node: Node) -> None:
    """Check that the ConfigMap of each process has every setting that the process has read."""
    for name in PROCESSES:
        keys = set((node.root / f"{name}.reads").read_text().split())
        assert keys >= {"observe.log_level", "observe.log_style"}, name
        assert {key for key in keys if not is_selected(key, READS[name])} == set(), name


def _scored_indices(node: Node) -> list[int]:
    """Return the scores of two responses from the gateway, with the credentials that the run requires."""
    key = node.secrets["fairlead-api-key"]["FAIRLEAD_API_KEY"].decode()
    authority = node.secrets["fairlead-tls"]["ca.crt"].decode()
    address, body = f"127.0.0.1:{node.ports['8080']}", {"prompt": "a", "responses": ["b", "c"]}
    tls = ssl.create_default_context(cadata=authority) if node.encrypted else None
    answer = ask(address, "POST", "/v1/rewards", body, {"Authorization": f"Bearer {key}"}, tls=tls)
    return [one["index"] for one in answer.json["rewards"]]


def _invited_with(node: Node, secret: str) -> int:
    """Return the status of inviting a person with a key."""
    key = node.secrets[secret]["FAIRLEAD_API_KEY"].decode()
    tls = ssl.create_default_context(cadata=node.secrets["fairlead-tls"]["ca.crt"].decode())
    address, body = f"127.0.0.1:{node.ports['8400']}", {"handle": "anna", "role": "labeler"}
    headers = {"Authorization": f"Bearer {key}"}
    return ask(
        address, "POST", "/v1/feedback/people", body, headers, tls=tls if node.encrypted else None
    ).status


def _keda_sees_the_queue_and_nothing_else(node: Node) -> None:
    """Check that the Redis user of components/keda can run the commands of the scaler and no others."""
    user = redis.Redis(
        port=node.ports["6379"], username=PASSWORDS["keda-username"], password=PASSWORDS["keda-password"]
    )
    stream = Keys("tiny").prompts
    assert "redis_version" in user.info()
    (group,) = user.xinfo_groups(stream)
    assert (group["name"], group["lag"]) == (GROUP.encode(), 0), "the group starts at 0, so its lag is known"
    assert user.xpending(stream, GROUP)["pending"] == 0
    for refused in (lambda: user.xrange(stream), lambda: user.delete(stream), lambda: user.xlen("other")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()
    user.close()
