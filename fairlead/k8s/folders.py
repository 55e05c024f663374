"""The folders of overlays and components that a run names, of the checkout or a user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fairlead.errors import ConfigError


def existing(folder: Path, name: str, flag: str) -> Path:
    """Return a folder of the checkout by its name, or any other by its path.

    Raises:
        ConfigError: there is none; names those of the checkout.
    """
    own = Path(name).resolve()
    if re.fullmatch(r"[\w-]+", name) and (folder / name / "kustomization.yaml").is_file():
        return folder / name
    if (own / "kustomization.yaml").is_file():
        return own
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    raise ConfigError(
        flag, got=name, allowed=f"one of {', '.join(known)}, or a folder with a kustomization.yaml"
    )


def components_of(overlay: Path) -> list[Path]:
    """Return the folders of the components that an overlay has, also by the overlays that it is based on."""
    text = (overlay / "kustomization.yaml").read_text(encoding="utf-8")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return []  # kustomize says where.
    content: Mapping[str, Any] = found if isinstance(found, dict) else {}
    components = [(overlay / str(name)).resolve() for name in content.get("components") or ()]
    for name in content.get("resources") or ():
        base = (overlay / str(name)).resolve()
        if (base / "kustomization.yaml").is_file() and base != overlay.resolve():
            components += components_of(base)
    return components


def check_once(components: Sequence[Path], of_overlay: Sequence[Path]) -> None:
    """Refuse a component that is applied twice: its volumes and objects would be there twice.

    Raises:
        ConfigError: a component is among `components` twice, or the overlay has it.
    """
    for index, one in enumerate(components):
        if one.resolve() in of_overlay:
            raise ConfigError("component", got=one.name, allowed="one that the overlay does not have already")
        if one in components[:index]:
            raise ConfigError("component", got=f"{one.name} twice", allowed="each component once")
