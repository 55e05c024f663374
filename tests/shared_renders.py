"""Renders of kustomize that the processes of a test session share: many are equal, and each takes 0.4 s."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path

import pytest
import yaml

from fairlead.k8s import manifests
from fairlead.k8s.manifests import Manifest, checkout

Kustomize = Callable[[Path], list[Manifest]]


@pytest.fixture(scope="session", autouse=True)
def share_renders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let `render` read what an equal call has rendered in this session, in whichever process."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "renders"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "kustomize", sharing(manifests.kustomize, folder))
        yield


def sharing(kustomize: Kustomize, folder: Path) -> Kustomize:
    """Return `kustomize` that keeps what it renders in a folder, and reads it there for equal inputs."""

    @wraps(kustomize)
    def render(source: Path) -> list[Manifest]:
        key = _key(source)
        if key is None:
            return kustomize(source)
        kept = folder / key
        if not kept.exists():
            written = kept.with_suffix(f".{os.getpid()}")
            written.write_bytes(pickle.dumps(kustomize(source)))
            written.rename(kept)
        found: list[Manifest] = pickle.loads(kept.read_bytes())
        return found

    return render


def _key(source: Path) -> str | None:
    """Return the digest of all that a render depends on; None if it reads what is not in the checkout."""
    kubectl = shutil.which("kubectl")
    text = (source / "kustomization.yaml").read_text(encoding="utf-8")
    parts = yaml.safe_load(text)
    read = [(source / one).resolve() for one in (*parts.get("resources", ()), *parts.get("components", ()))]
    if kubectl is None or not all(one.is_relative_to(checkout()) for one in read):
        return None
    own = sorted(one for one in source.iterdir())
    if not all(one.is_file() for one in own):
        return None
    digest = hashlib.sha256(f"{kubectl} {os.stat(kubectl).st_mtime_ns} {_checkout()} {read}".encode())
    for one in own:
        digest.update(f"\0{one.name}\0".encode() + one.read_bytes())
    return digest.hexdigest()


@cache
def _checkout() -> str:
    """Return the digest of the manifests; no test changes them."""
    digest = hashlib.sha256()
    for one in sorted(checkout().rglob("*")):
        if one.is_file():
            digest.update(f"\0{one.relative_to(checkout())}\0".encode() + one.read_bytes())
    return digest.hexdigest()
