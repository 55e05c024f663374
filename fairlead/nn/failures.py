"""Why a model or tokenizer could not be loaded, in one line that says what to do.

transformers wraps what happened in several errors of several lines; what counts is the first that is known.
"""

from __future__ import annotations

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
        # A gated repository is a kind of one that is not found.
        if isinstance(cause, GatedRepoError):
            return ModelLoadError(
                f"the hub model {path!r} is gated: accept its terms at https://huggingface.co/{path}, "
                f"then {_LOG_IN}"
            )
        if isinstance(cause, RepositoryNotFoundError | HFValidationError):
            return ModelLoadError(
                f"{path!r} is no folder here and no model of the hub: check the name; if it is private, "
                f"{_LOG_IN}"
            )
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | TimeoutError):
            return ModelLoadError(
                f"{path!r} is no folder here, is not in the hub's cache, and the hub cannot be reached: "
                f"fetch it where there is a network with `hf download {path}`, or give a folder"
            )
        if isinstance(cause, HfHubHTTPError):
            return ModelLoadError(f"the hub refuses {path!r}: {first_line(cause)}")
    return ModelLoadError(
        f"cannot load {what}: {first_line(error)}. Is the folder complete, "
        "with config.json and *.safetensors?"
    )


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's kind where it has none; shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(" .")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
