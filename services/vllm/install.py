"""The options and models that the installed vLLM takes, and the environment that it reads.

Imports nothing of vLLM: its environment must be set before that.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping

from fairlead.config.serving import VLLM_OPTIONS_NOT_SUPPORTED
from fairlead.errors import ConfigError
from fairlead.nn import adapters
from services.vllm import service_process

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
    if kind := adapters.kind_of_part(path):
        raise ConfigError(
            f"{service}.path",
            got=f"{path}, {kind}",
            allowed=f"a whole model in safetensors files, because {service}.engine is 'vllm'",
        )


def in_one_line(error: Exception) -> str:
    """Return the class and the beginning of the message of one of vLLM's errors."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
