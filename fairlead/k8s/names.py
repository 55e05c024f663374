"""What names of namespaces, registries and tags may be, checked before the cluster is asked."""

from __future__ import annotations

import re

from fairlead.errors import ConfigError

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_REGISTRY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def check_namespace_name(name: str) -> None:
    """Check that a namespace can have a name.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAMESPACE.fullmatch(name):
        allowed = "1 to 63 lower-case letters, digits and hyphens, such as team-a"
        raise ConfigError("namespace", got=name, allowed=allowed)


def check_image_names(registry: str, tag: str) -> None:
    """Check that images can have a registry and a tag; an empty registry is that of the overlay.

    Raises:
        ConfigError: they cannot.
    """
    if registry and not _REGISTRY.fullmatch(registry):
        allowed = "a host and a path, without https://, such as registry.example.com/team"
        raise ConfigError("registry", got=registry, allowed=allowed)
    if not _TAG.fullmatch(tag):
        raise ConfigError("tag", got=tag, allowed="a tag of an image, such as 0.1.0")
