"""The bill of materials: compared with what pip and dpkg say is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.sbom import bill_of_materials

STATUS = """Package: tini
Status: install ok installed
Architecture: amd64
Version: 0.19.0-1
Description: a small init
 Status: not a field

Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 1:1.0
"""


@pytest.fixture(scope="module")
def document():
    return bill_of_materials()


def of_kind(document, kind):
    return [one for one in document["components"] if one["purl"].startswith(f"pkg:{kind}/")]


def test_packages_of_python_are_those_of_pip(document):
    command = [sys.executable, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    wanted = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in listed}
    found = of_kind(document, "pypi")
    own = document["metadata"]["component"]
    assert {one["name"]: one["version"] for one in (*found, own)} == wanted
    assert len(found) + 1 == len(wanted), "each once"
    licences = {one["name"]: one.get("licenses") for one in found}
    assert licences["prometheus-client"] == [{"expression": "Apache-2.0 AND BSD-2-Clause"}]


def test_dependencies_name_listed_packages(document):
    listed = {one["bom-ref"] for one in (*document["components"], document["metadata"]["component"])}
    edges = {one["ref"]: one["dependsOn"] for one in document["dependencies"]}
    assert set(edges) <= listed
    assert {one for targets in edges.values() for one in targets} <= listed
    own = edges[document["metadata"]["component"]["bom-ref"]]
    assert any(one.startswith("pkg:pypi/grpcio@") for one in own)


def test_installed_packages_of_debian_are_listed(tmp_path: Path):
    (tmp_path / "status").write_text(STATUS)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    found = bill_of_materials(dpkg=tmp_path / "status", os_release=tmp_path / "os-release")
    assert [one["purl"] for one in of_kind(found, "deb")] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:deb/debian/tini@0.19.0-1?arch=amd64&distro=debian-12",
    ]
    assert not of_kind(bill_of_materials(dpkg=tmp_path / "absent"), "deb")


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian system")
def test_packages_of_this_machine_are_those_of_dpkg(document):
    command = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    wanted = sorted(tuple(line.split()[1:]) for line in lines if line.startswith("installed "))
    found = [
        (one["name"], one["version"], re.findall(r"arch=(\w+)", one["purl"])[0])
        for one in of_kind(document, "deb")
    ]
    assert sorted(found) == wanted


def test_the_same_packages_give_the_same_document(document):
    assert json.dumps(bill_of_materials()) == json.dumps(document)
