"""What an image contains, in the form that scanners read: `python -m fairlead.sbom > sbom.cdx.json`.

Lists the packages of this Python and those of Debian as CycloneDX 1.6 (https://cyclonedx.org). The
Dockerfiles write it to /usr/share/fairlead/sbom.cdx.json. Needs the standard library only, and no network.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

_OURS = "fairlead-rlhf"
_DPKG = Path("/var/lib/dpkg/status")
_OS = Path("/etc/os-release")
_LICENCE_FIELDS = ("License-Expression", "Classifier", "License")
_LICENCE_CLASSIFIER = "License :: "
_LONGEST_LICENCE = 100
"""Characters; some packages have the whole text in the field for its name."""
Json = dict[str, object]


def bill_of_materials(*, dpkg: Path = _DPKG, os_release: Path = _OS) -> Json:
    """Return the CycloneDX document of this environment, the same for the same packages.

    Args:
        dpkg: status file of Debian's package manager; without it only packages of Python are listed.
        os_release: names the distribution.
    """
    found = {_normalised(one.name): one for one in reversed(list(metadata.distributions()))}
    ours = found.pop(_OURS, None)
    python = {name: _of_python(name, found[name]) for name in sorted(found)}
    debian = list(_debian_packages(dpkg, os_release)) if dpkg.is_file() else []
    document: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [*python.values(), *debian],
    }
    if ours is not None:
        document["metadata"] = {"component": _of_python(_OURS, ours) | {"type": "application"}}
        found[_OURS] = ours
    references = {name: _python_url(name, one.version) for name, one in found.items()}
    document["dependencies"] = [
        {
            "ref": references[name],
            "dependsOn": sorted(references[one] for one in _required(found[name], found)),
        }
        for name in sorted(found)
    ]
    return document


def _of_python(name: str, package: metadata.Distribution) -> Json:
    url = _python_url(name, package.version)
    component: Json = {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": package.version,
        "purl": url,
    }
    licence = _licence(package)
    return component | ({"licenses": [licence]} if licence else {})


def _licence(package: metadata.Distribution) -> Json | None:
    """Return the licence that a package declares, as an expression of SPDX identifiers or a name."""
    fields = {name: package.metadata.get_all(name) or [] for name in _LICENCE_FIELDS}
    if expressions := fields["License-Expression"]:
        return {"expression": expressions[0]}
    names = [one.rpartition(" :: ")[2] for one in fields["Classifier"] if one.startswith(_LICENCE_CLASSIFIER)]
    stated = "".join(fields["License"]).strip()
    if not names and stated and "\n" not in stated and len(stated) <= _LONGEST_LICENCE:
        names = [stated]
    return {"license": {"name": ", ".join(names)}} if names else None


def _required(package: metadata.Distribution, installed: Iterable[str]) -> set[str]:
    """Return the installed packages that a package requires, also those of extras that are installed."""
    names = (re.match(r"[\w.-]+", one) for one in package.requires or ())
    return {_normalised(match[0]) for match in names if match} & set(installed)


def _debian_packages(dpkg: Path, os_release: Path) -> Iterator[Json]:
    """Yield the installed packages of Debian by name."""
    system = {
        key: value.strip('"')
        for line in (os_release.read_text(encoding="utf-8").splitlines() if os_release.is_file() else ())
        for key, _, value in [line.partition("=")]
    }
    stanzas = [_fields(one) for one in dpkg.read_text(encoding="utf-8").split("\n\n")]
    installed = [one for one in stanzas if one.get("Status", "").endswith(" installed")]
    for one in sorted(installed, key=lambda fields: (fields["Package"], fields["Architecture"])):
        vendor = system.get("ID", "debian")
        where = f"arch={one['Architecture']}&distro={vendor}-{system.get('VERSION_ID', '')}".rstrip("-")
        url = f"pkg:deb/{vendor}/{_quoted(one['Package'])}@{_quoted(one['Version'])}?{where}"
        yield {
            "type": "library",
            "bom-ref": url,
            "name": one["Package"],
            "version": one["Version"],
            "purl": url,
        }


def _fields(stanza: str) -> Mapping[str, str]:
    """Return the fields of a stanza that have one line."""
    lines = (line.partition(": ") for line in stanza.splitlines() if not line.startswith(" "))
    return {key: value for key, separator, value in lines if separator}


def _normalised(name: str) -> str:
    """Return the name by which an index of packages knows a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_url(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{_quoted(version)}"


def _quoted(text: str) -> str:
    return quote(text, safe=":~")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill_of_materials(), indent=1) + "\n")
