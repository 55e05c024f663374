"""Explain in one line why a model or tokenizer could not be loaded, and what to do.

transformers wraps the cause in several multi-line errors; the first known one in the chain is reported.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from fairlead.errors import ModelLoadError, pickle_refused

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def load_failure(what: str, path: str, error: BaseException) -> ModelLoadError:
    """Return the error to raise for an error of transformers.

    Args:
        what: description of what could not be loaded.
        path: requested folder or hub id.
        error: the error of transformers.
    """
    for cause in _causes(error):
        if "cannot be loaded with `safetensors`" in str(cause) and not Path(path).expanduser().is_dir():
            return pickle_refused(path, "pytorch_model.bin")
        reason = _of_the_hub(path, cause) or _of_the_machine(what, cause)
        if reason:
            return ModelLoadError(reason)
    check = (
        "file is complete"
        if path.endswith(".gguf")
        else "folder is complete, with config.json and *.safetensors"
    )
    return ModelLoadError(f"cannot load {what}: {first_line(error)}. Check that the {check}")


def _of_the_hub(path: str, cause: BaseException) -> str:
    # GatedRepoError derives from RepositoryNotFoundError.
    if isinstance(cause, GatedRepoError):
        return (
            f"the hub model {path!r} is gated: accept its terms at https://huggingface.co/{path}, "
            f"then {_LOG_IN}"
        )
    if isinstance(cause, RepositoryNotFoundError | HFValidationError):
        return (
            f"{path!r} is neither a local folder nor a model on the hub: "
            f"check the name; if it is private, {_LOG_IN}"
        )
    if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | TimeoutError):
        return (
            f"{path!r} is neither a local folder nor in the hub's cache, and the hub cannot be reached: "
            f"download it on a machine with network access by `hf download {path}`, or give a folder"
        )
    return (
        f"the hub denies access to {path!r}: {first_line(cause)}" if isinstance(cause, HfHubHTTPError) else ""
    )


def _of_the_machine(what: str, cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"the disk is full, so {what} cannot be downloaded: free space, or set HF_HOME"
    if _is_out_of_memory(cause):
        return (
            f"not enough memory for {what}: `fairlead plan` reports how much a run needs; "
            "dtype = 'bfloat16' needs half"
        )
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(" .")


def _is_out_of_memory(error: BaseException) -> bool:
    # torch reports exhausted GPU memory by a class, but exhausted CPU memory only by its message.
    messages = ("can't allocate memory", "Cannot allocate memory", "unable to mmap")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(message in str(error) for message in messages)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
