"""Pin the images that this repository names to the digests that their tags have now.

    python docker/pin.py            # writes the digests into docker/*.Dockerfile and k8s/
    python docker/pin.py --check    # reports what is not pinned, or has a newer digest; changes nothing

A digest names the bytes of an image, which a tag does not; it also keeps security updates away until the next
run of this program. It asks the registries of the images, without an account.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = re.compile(
    r"(?P<before>^ARG BASE=|^ *image: )(?P<host>[\w.-]+\.[\w-]+)/(?P<name>[\w./-]+)"
    r":(?P<tag>[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?$",
    re.MULTILINE,
)
"""An image with a registry and a tag, as a base in a Dockerfile or in a manifest."""
_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_HOSTS = {"docker.io": "registry-1.docker.io"}
"""Registries whose images have another host in their names."""
_SECONDS = 30.0


def files(root: Path) -> list[Path]:
    """Return the files that name images."""
    return [*sorted((root / "docker").glob("*.Dockerfile")), *sorted((root / "k8s").rglob("*.yaml"))]


def resolve(host: str, name: str, tag: str, *, scheme: str = "https") -> str:
    """Return the digest of a tag, `sha256:…`: that of its index if it has several platforms.

    Raises:
        OSError: if the registry cannot be reached, or does not know the tag.
        ValueError: if its answer has no digest.
    """
    address = f"{scheme}://{_HOSTS.get(host, host)}/v2/{name}/manifests/{tag}"
    request = urllib.request.Request(address, method="HEAD", headers={"Accept": _TYPES})
    try:
        answer = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        request.add_header("Authorization", f"Bearer {_token(error.headers.get('WWW-Authenticate') or '')}")
        answer = urllib.request.urlopen(request, timeout=_SECONDS)
    with answer:
        digest = answer.headers.get("Docker-Content-Digest") or ""
    if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{address} answered without a digest")
    return digest


def _token(challenge: str) -> str:
    """Return the token that a registry gives to everyone, from where its challenge says."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if "realm" not in fields:
        raise ValueError(f"the registry asks for a password: {challenge!r}")
    address = f"{fields['realm']}?service={fields.get('service', '')}&scope={fields.get('scope', '')}"
    with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
        found = json.load(answer)
    return str(found.get("token") or found["access_token"])


def pin(root: Path, *, check: bool = False, scheme: str = "https") -> list[str]:
    """Write the digests, or only compare them.

    Returns:
        A line for each image whose digest is missing or old.
    """
    differences: list[str] = []
    resolved: dict[tuple[str, str, str], str] = {}
    for path in files(root):
        text = path.read_text(encoding="utf-8")

        def pinned(match: re.Match[str], path: Path = path) -> str:
            image = (match["host"], match["name"], match["tag"])
            if image not in resolved:
                resolved[image] = resolve(*image, scheme=scheme)
            if match["digest"] != f"@{resolved[image]}":
                was = match["digest"] or "no digest"
                found = f"{match['host']}/{match['name']}:{match['tag']}"
                differences.append(f"{path.relative_to(root)}: {found}: {was}, now {resolved[image]}")
            return f"{match['before']}{match['host']}/{match['name']}:{match['tag']}@{resolved[image]}"

        new = IMAGE.sub(pinned, text)
        if new != text and not check:
            path.write_text(new, encoding="utf-8")
    return differences


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="report, and change nothing")
    check = parser.parse_args().check
    differences = pin(ROOT, check=check)
    for line in differences:
        print(line)
    return 1 if check and differences else 0


if __name__ == "__main__":
    sys.exit(main())
