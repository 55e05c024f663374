"""Why a model or tokenizer could not be loaded, in one line that says what to do.

transformers wraps what happened in several errors of several lines; what counts is the first that is known.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from fairlead.errors import ModelLoadError

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def load_failure(what: str, path: str, error: BaseException) -> ModelLoadError:
    """What to raise for an error of transformers.

    Args:
        what: could not be loaded, for people.
        path: folder or hub id that was asked for.
        error: as transformers raised it.
    """
    for cause in _causes(error):
        reason = _of_the_hub(path, cause) or _of_the_machine(what, cause)
        if reason:
            return ModelLoadError(reason)
    return ModelLoadError(
        f"cannot load {what}: {first_line(error)}. Is the folder complete, "
        "with config.json and *.safetensors?"
    )


def _of_the_hub(path: str, cause: BaseException) -> str:
    # A gated repository is a kind of one that is not found.
    if isinstance(cause, GatedRepoError):
        return (
            f"the hub model {path!r} is gated: accept its terms at https://huggingface.co/{path}, "
            f"then {_LOG_IN}"
        )
    if isinstance(cause, RepositoryNotFoundError | HFValidationError):
        return (
            f"{path!r} is no folder here and no model of the hub: check the name; if it is private, {_LOG_IN}"
        )
    if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | TimeoutError):
        return (
            f"{path!r} is no folder here, is not in the hub's cache, and the hub cannot be reached: "
            f"fetch it where there is a network with `hf download {path}`, or give a folder"
        )
    return f"the hub refuses {path!r}: {first_line(cause)}" if isinstance(cause, HfHubHTTPError) else ""


def _of_the_machine(what: str, cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"the disk is full, so {what} cannot be fetched: make room, or set HF_HOME"
    if _is_out_of_memory(cause):
        return (
            f"there is not enough memory for {what}: `fairlead plan` says how much a run needs; "
            "dtype = 'bfloat16' needs half"
        )
    return ""


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's kind where it has none; shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(" .")


def _is_out_of_memory(error: BaseException) -> bool:
    # torch tells of the CPU's memory by a sentence alone; of a GPU's by a class of its own.
    told = ("can't allocate memory", "Cannot allocate memory", "unable to mmap")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sentence in str(error) for sentence in told)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
