"""The images: the build prepares the wheels that their Dockerfiles install, and runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "tests" / "images" / "build.sh"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def installed(text: str) -> set[str]:
    """Return the extras of Fairlead that a file installs, also those that others contain."""
    found = {name for names in re.findall(r"\.\[([a-z,]+)\]", text) for name in names.split(",")}
    while (
        more := {
            name
            for extra in found
            for line in EXTRAS[extra]
            for names in re.findall(r"^fairlead-rlhf\[([a-z,]+)\]", line)
            for name in names.split(",")
        }
        - found
    ):
        found |= more
    return found


def test_wheels_contain_what_the_images_install():
    wheels = installed(BUILD.read_text())
    for image in ("light", "model"):
        asked = installed((ROOT / "docker" / f"{image}.Dockerfile").read_text())
        assert asked, image
        assert asked <= wheels, image


def test_dockerfiles_copy_only_what_the_build_context_contains():
    included = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        for source in re.findall(r"^COPY (?!--from)(\S+) ", path.read_text(), re.MULTILINE):
            assert source == "." or source in included, (path.name, source)
    assert included == {name for name in included if (ROOT / name).exists()}


def test_images_name_their_origin_and_contents():
    bases = {}
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        text = path.read_text()
        (bases[path.stem],) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
        final = text.rpartition("\nFROM ")[2]
        labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", final))
        assert labels == {"title", "description", "licenses", "revision", "base.name"}, path.name
        # Re-declared in the stage, or the labels would be empty.
        assert re.search(r"^ARG BASE$", final, re.MULTILINE), path.name
        assert "-m fairlead.sbom > /usr/share/fairlead/sbom.cdx.json\n" in final, path.name
        assert final.index("fairlead.sbom") < final.index("USER 10001:10001"), "root writes it"
    assert bases["light"] == bases["model"]
    assert re.fullmatch(r"docker\.io/library/debian:[\w-]+-slim@sha256:[0-9a-f]{64}", bases["light"])
    assert re.fullmatch(r"docker\.io/vllm/vllm-openai:v\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", bases["vllm"])


class Registry(BaseHTTPRequestHandler):
    """A registry that has one tag, and gives a token to everyone."""

    digests: ClassVar = {"/v2/library/debian/manifests/12-slim": f"sha256:{'a' * 64}"}

    def do_GET(self) -> None:
        assert self.path == "/token?service=registry.test&scope=repository:library/debian:pull"
        self.answer(200, {}, b'{"token": "of-everyone"}')

    def do_HEAD(self) -> None:
        if self.headers["Authorization"] != "Bearer of-everyone":
            realm = f'Bearer realm="http://{self.headers["Host"]}/token"'
            scope = 'service="registry.test",scope="repository:library/debian:pull"'
            self.answer(401, {"WWW-Authenticate": f"{realm},{scope}"})
        elif self.path in self.digests and "image.index.v1+json" in self.headers["Accept"]:
            self.answer(200, {"Docker-Content-Digest": self.digests[self.path]})
        else:
            self.answer(404, {})

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def pin():
    specification = importlib.util.spec_from_file_location("pin", ROOT / "docker" / "pin.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def registry():
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_digests_are_those_of_the_registry(pin, registry, monkeypatch, tmp_path):
    monkeypatch.setitem(pin._HOSTS, "docker.io", registry)
    (tmp_path / "docker").mkdir()
    dockerfile = tmp_path / "docker" / "a.Dockerfile"
    base = "ARG BASE=docker.io/library/debian:12-slim"
    dockerfile.write_text(f"# {base}\n{base}\nFROM ${{BASE}}\n")
    newest = f"sha256:{'a' * 64}"
    (line,) = pin.pin(tmp_path, check=True, scheme="http")
    assert line == f"docker/a.Dockerfile: docker.io/library/debian:12-slim: no digest, now {newest}"
    assert newest not in dockerfile.read_text(), "a check changes nothing"
    pin.pin(tmp_path, scheme="http")
    assert dockerfile.read_text() == f"# {base}\n{base}@{newest}\nFROM ${{BASE}}\n"
    assert pin.pin(tmp_path, check=True, scheme="http") == []
    dockerfile.write_text(f"{base}@sha256:{'0' * 64}\n")
    assert len(pin.pin(tmp_path, scheme="http")) == 1
    assert dockerfile.read_text() == f"{base}@{newest}\n"
    dockerfile.write_text(f"{base}-typo\n")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        pin.pin(tmp_path, scheme="http")


def test_images_of_others_are_found_for_pinning(pin):
    found = [match for path in pin.files(ROOT) for match in pin.IMAGE.finditer(path.read_text())]
    pinned = {one["name"] for one in found if one["digest"]}
    assert pinned == {"library/debian", "valkey/valkey", "oliver006/redis_exporter"}
    assert {one["name"] for one in found} == pinned | {"vllm/vllm-openai"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_light_image_runs_without_rights_on_a_read_only_root():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("needs a Docker daemon")
    build = [docker, "build", "--quiet", "--file", "docker/light.Dockerfile", "."]
    image = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    # As a pod runs it.
    run = [docker, "run", "--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--network=none", image]
    script = "id -u && ! touch /opt/x 2>/dev/null && touch /tmp/x && fairlead --version"
    done = subprocess.run([*run, "sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "10001"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_images_builds_and_checks_both(tmp_path: Path):
    python = shutil.which("python3.11")
    if os.geteuid() or shutil.which("buildah") is None or python is None:
        pytest.skip("needs root, buildah and python3.11")
    done = subprocess.run([BUILD, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "== sizes" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheels_install_both_images(tmp_path: Path):
    environment = os.environ | {"PYTHON": shutil.which("python3.11") or sys.executable}
    command = [BUILD, "--wheels", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count("can be installed from the wheels") == 2
