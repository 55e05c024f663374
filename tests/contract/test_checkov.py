"""checkov, where it is installed, finds what .checkov.yaml explains and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fairlead.k8s.manifests import as_yaml, checkout, kustomize
from tests.rendered import VARIANTS, needs_kubectl, rendered

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".checkov.yaml"


def test_every_check_that_is_left_out_has_a_reason():
    skipped = yaml.safe_load(CONFIG.read_text())["skip-check"]
    assert len(skipped) == len(set(skipped))
    explained = re.findall(r"^  # \S.*[.:]\n((?:  - CKV\w+\n)+)", CONFIG.read_text(), re.MULTILINE)
    assert [name for group in explained for name in re.findall(r"CKV\w+", group)] == skipped


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_kubectl
def test_checkov_finds_what_is_explained_and_nothing_else(tmp_path: Path):
    program = os.environ.get("CHECKOV") or shutil.which("checkov")
    if program is None:
        pytest.skip(
            "needs checkov: install it into an environment of its own, and set CHECKOV to the program"
        )
    variants, plain = tmp_path / "variants", tmp_path / "plain"
    variants.mkdir()
    for name in VARIANTS:
        (variants / f"{re.sub(r'[^a-z-]+', '-', name)}.yaml").write_text(as_yaml(rendered(name)))
    shutil.copytree(ROOT / "docker", variants / "docker")
    # In a folder of its own, or the network policies of others would be its own, too.
    plain.mkdir()
    (plain / "kind.yaml").write_text(as_yaml(kustomize(checkout() / "overlays" / "kind")))
    settings = yaml.safe_load(CONFIG.read_text())
    skipped = set(settings.pop("skip-check"))
    found = findings(program, variants, settings, {"kubernetes", "dockerfile"})
    found |= findings(program, plain, settings, {"kubernetes"})
    assert {(name, where) for name, where in found if name not in skipped} == set()
    assert skipped - {name for name, _ in found} == set(), "left out although nothing fails it"


def findings(program: str, folder: Path, settings: object, kinds: set[str]) -> set[tuple[str, str]]:
    """Return each check that fails, with what fails it.

    checkov also reads a `.checkov.yaml` in the folder in which it is started.
    """
    config = folder.parent / "settings"
    config.write_text(yaml.safe_dump(settings))
    command = [program, "--directory", str(folder), "--config-file", str(config)]
    command += ["--output", "json", "--skip-download"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    reports = json.loads(done.stdout)
    reports = reports if isinstance(reports, list) else [reports]
    assert {one["check_type"] for one in reports} == kinds
    assert all(one["summary"]["passed"] > 0 and not one["summary"]["parsing_errors"] for one in reports)
    return {
        (check["check_id"], check["resource"]) for one in reports for check in one["results"]["failed_checks"]
    }
