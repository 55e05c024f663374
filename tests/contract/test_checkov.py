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

from fairlead.k8s.manifests import as_yaml
from tests.rendered import VARIANTS, needs_kubectl, rendered

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".checkov.yaml"


def test_every_check_that_is_left_out_has_a_reason():
    skipped = yaml.safe_load(CONFIG.read_text())["skip-check"]
    assert len(skipped) == len(set(skipped))
    explained = re.findall(r"^  # \S.*[.:]\n((?:  - CKV\w+\n)+)", CONFIG.read_text(), re.MULTILINE)
    assert [name for group in explained for name in re.findall(r"CKV\w+", group)] == skipped


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_kubectl
def test_checkov_finds_what_is_explained_and_nothing_else(tmp_path: Path):
    program = os.environ.get("CHECKOV") or shutil.which("checkov")
    if program is None:
        pytest.skip(
            "needs checkov: install it into an environment of its own, and set CHECKOV to the program"
        )
    for name in VARIANTS:
        (tmp_path / f"{re.sub(r'[^a-z-]+', '-', name)}.yaml").write_text(as_yaml(rendered(name)))
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    settings = yaml.safe_load(CONFIG.read_text())
    skipped = set(settings.pop("skip-check"))
    everything = tmp_path / "everything"
    everything.write_text(yaml.safe_dump(settings))
    command = [program, "--directory", str(tmp_path), "--config-file", str(everything)]
    command += ["--output", "json", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    reports = json.loads(done.stdout)
    reports = reports if isinstance(reports, list) else [reports]
    assert {one["check_type"] for one in reports} == {"kubernetes", "dockerfile"}
    assert all(one["summary"]["passed"] > 0 and not one["summary"]["parsing_errors"] for one in reports)
    failed: dict[str, set[str]] = {}
    for one in reports:
        for check in one["results"]["failed_checks"]:
            failed.setdefault(check["check_id"], set()).add(check["resource"])
    assert {name: where for name, where in failed.items() if name not in skipped} == {}
    assert skipped - set(failed) == set(), "left out although nothing fails it"
