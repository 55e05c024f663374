"""Documents match the code: generated pages, links, file names, install commands."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fairlead.errors import install_command

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_metrics_page_matches_the_catalogue():
    assert (ROOT / "docs" / "metrics.md").read_text() == script("metrics_table").page()


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    names = {re.split(r"[^a-z0-9-]", need)[0] for need in [*project["dependencies"], *extras]} - {
        "fairlead-rlhf"
    }
    assert len(names) > 20
    page = (ROOT / "docs" / "dependencies.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name
)
def test_every_link_and_named_file_exists(page: Path):
    text = page.read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    named = re.findall(
        r"`((?:fairlead|services|trainer|examples|configs|protos|docs|tests|benchmarks)/[\w./-]+)`", text
    )
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name
)
def test_every_anchor_exists(page: Path):
    for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", ((page.parent / target) if target else page).read_text(), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{target}#{anchor}"


def test_ci_workflow_runs_the_project_checks():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# `fairlead` on PyPI is another project; ours is `fairlead-rlhf`. A path such as ./fairlead is allowed.
OTHER_PROJECT = "fairlead"
INSTALLS_OTHER_PROJECT = re.compile(
    rf"pip3?\W+install\b[^\n;&|]*?(?<![\w./-]){OTHER_PROJECT}(?![\w./-])"
    rf"|(?<![\w./-]){OTHER_PROJECT}\[[a-z,]+\]"
)


@pytest.mark.parametrize(
    "line",
    [
        f"pip install {OTHER_PROJECT}",
        f"python -m pip install --quiet '{OTHER_PROJECT}[torch]'",
        f'pip3 install "{OTHER_PROJECT}>=1"',
        f'["pip", "install", "{OTHER_PROJECT}"]',
        f"!pip install torch {OTHER_PROJECT}\\n",
        f"RUN pip install --no-cache-dir \\\n    {OTHER_PROJECT}",
        f"the extra `{OTHER_PROJECT}[local]`",
    ],
)
def test_check_of_install_commands_finds_the_other_project(line: str):
    assert installs_other_project(line)


def test_no_file_says_to_install_the_other_project():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [path for path in tracked.stdout.split("\0") if path and (ROOT / path).is_file()]
    assert len(paths) > 500
    found = [path for path in paths if installs_other_project((ROOT / path).read_text(errors="replace"))]
    assert found == []


def installs_other_project(text: str) -> bool:
    return INSTALLS_OTHER_PROJECT.search(text.replace("\\\n", " ")) is not None


def test_install_messages_name_existing_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert install_command("torch") == f"pip install '{project['name']}[torch]'"
    code = [*ROOT.glob("fairlead/**/*.py"), *ROOT.glob("services/**/*.py"), *ROOT.glob("trainer/**/*.py")]
    extras = {
        extra for path in code for extra in re.findall(r"install_command\(['\"](\w+)", path.read_text())
    }
    assert extras
    assert extras <= set(project["optional-dependencies"])
