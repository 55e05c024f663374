"""The images: the build prepares the wheels that their Dockerfiles install, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

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
