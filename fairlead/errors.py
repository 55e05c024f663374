"""Every error of the project, with its gRPC status, HTTP status and exit code.

All parts raise these; only the outermost layer of a process converts them to a status or an exit code.

    FairleadError
    ├── InvalidInput                a mistake of the caller: field, index, value received, values allowed
    │   ├── ConfigError             in a configuration file, the environment or a flag
    │   ├── DataError               in a data file; names the file and the line
    │   └── RemoteInvalidInput      reported by a server
    ├── Transient                   may pass without a change of the request: worth a retry
    │   ├── Overloaded              at capacity; carries the delay before a retry
    │   ├── Unavailable             loading, draining or unreachable
    │   │   ├── QueueUnavailable    Redis does not answer
    │   │   └── ReplicaLost         a replica died, or its connection broke, during a call
    │   ├── StaleWeights            the replica does not have the requested weights yet
    │   └── DeadlineExceeded        out of time
    ├── Unauthenticated             missing or wrong credentials
    ├── PermissionDenied            valid credentials that do not allow this
    ├── NotFound                    no such model or version
    ├── Conflict                    valid, but not in the present state; says which state
    ├── NotOffered                  a method of a protocol that this server does not implement
    ├── ModelLoadError              a model cannot be loaded; says why
    ├── QueueMisconfigured          Redis would lose work, for example by evicting keys
    ├── OutOfMemory                 training does not fit; names the settings to lower
    ├── OutOfSpace                  the disk is full
    ├── ReadOnlyDisk                a folder is not writable
    ├── Fenced                      a newer incarnation of the trainer has taken over
    ├── SchemaTooNew                an entry was written by a newer version of fairlead
    ├── CorruptData                 a checksum or a structure is wrong
    │   ├── CorruptWeights
    │   ├── CorruptCheckpoint
    │   └── CorruptOutcome          an entry of the queue cannot be decoded; carries its id
    ├── Stalled                     waited too long; names what for, and how long
    ├── RankLost                    a rank of the trainer died, hangs or does not answer; names it
    ├── NotFinite                   a loss, a gradient, a weight or a score is NaN or infinite; names it
    ├── NothingToTrain              every task of several updates was a dead letter; names the reasons
    ├── StoppedByGuard              reward hacking was detected; names the checkpoint that was restored
    ├── StoppedByGate               a round of judgments or its reward model is too poor to continue; says why
    ├── ProcessFailed               a process of a local run failed for good
    ├── EngineFailed                vLLM cannot start or continue; a restart may help
    ├── ClusterRefused              the Kubernetes API refused a request; names the object and what to do
    └── InternalError               a bug; carries the id of its log entry
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import grpc


class FairleadError(Exception):
    """The base of every error."""


class InvalidInput(FairleadError):
    """A mistake of the caller. No part of the request was processed."""

    def __init__(self, field: str, *, got: object, allowed: str, index: int | None = None) -> None:
        self.field = field
        self.got = got
        self.allowed = allowed
        self.index = index
        super().__init__(f"{self.where}: got {_shortened(got)}, allowed: {allowed}")

    @property
    def where(self) -> str:
        """Field and index without the value, which may not be fit for a log."""
        return self.field if self.index is None else f"{self.field}[{self.index}]"


class ConfigError(InvalidInput):
    """A mistake in the configuration of a run."""


class DataError(InvalidInput):
    """An invalid line of a data file."""

    def __init__(self, file: str, line: int, *, got: object, allowed: str) -> None:
        self.file = file
        self.line = line
        super().__init__(f"{file}:{line}", got=got, allowed=allowed)


class RemoteInvalidInput(InvalidInput):
    """A mistake of the caller reported by a server, in the server's words."""

    def __init__(self, message: str) -> None:
        FairleadError.__init__(self, message)
        parts = re.fullmatch(r"(.*?)(?:\[(\d+)\])?: got (.*), allowed: (.*)", message, re.DOTALL)
        self.field, index, self.got, self.allowed = parts.groups() if parts else ("", None, "", message)
        self.index = None if index is None else int(index)


class Transient(FairleadError):
    """An error that may pass without a change of the request, so that a retry can succeed."""


class Overloaded(Transient):
    """At capacity; retry after the delay."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{message}; try again in {retry_after_seconds:g} s")


class Unavailable(Transient):
    """A service is loading, draining or unreachable."""


class QueueUnavailable(Unavailable):
    """Redis does not answer."""


class ReplicaLost(Unavailable):
    """A replica died, or its connection broke, during a call."""


class StaleWeights(Transient):
    """The replica does not have weights as new as requested."""


class DeadlineExceeded(Transient):
    """The deadline passed; the work was not started or was dropped."""


class Unauthenticated(FairleadError):
    """Missing or wrong credentials."""


class PermissionDenied(FairleadError):
    """The credentials are valid but do not allow this."""


class NotFound(FairleadError):
    """No such model or version; names those that exist."""


class Conflict(FairleadError):
    """A request that is valid, but not in the present state, such as a revision that comes too late."""


class NotOffered(FairleadError):
    """A method of a protocol that this server does not implement; says what to do instead."""


class ModelLoadError(FairleadError):
    """A model cannot be loaded; says which, why, and what to do."""


class QueueMisconfigured(FairleadError):
    """Redis is configured such that it would lose work."""


class OutOfMemory(FairleadError):
    """Training needs more memory than available; names the settings to lower."""


class OutOfSpace(FairleadError):
    """The disk is full; existing files are unchanged."""


class ReadOnlyDisk(FairleadError):
    """A folder is not writable; existing files are unchanged."""


class Fenced(FairleadError):
    """A newer incarnation of the trainer has taken over; this one must stop."""


class SchemaTooNew(FairleadError):
    """An entry was written by a newer version of fairlead."""


class CorruptData(FairleadError):
    """A checksum or a structure is wrong."""


class CorruptWeights(CorruptData):
    """A weight version is damaged or incomplete."""


class CorruptCheckpoint(CorruptData):
    """A checkpoint is damaged or incomplete."""


class CorruptOutcome(CorruptData):
    """An outcome cannot be decoded. If its entry is deleted, reconciliation sends the task again."""

    def __init__(self, entry_id: str, reason: str) -> None:
        self.entry_id = entry_id
        super().__init__(f"outcome entry {entry_id}: {reason}")


class Stalled(FairleadError):
    """A wait lasted too long; names what it was for."""


class RankLost(FairleadError):
    """A rank of the trainer died, hangs or does not answer; all ranks must start again."""


class NotFinite(FairleadError):
    """Training stopped because a number is NaN or infinite; nothing of that kind was written."""


class NothingToTrain(FairleadError):
    """PPO stopped because every task of several updates in a row was a dead letter."""


class StoppedByGuard(FairleadError):
    """PPO stopped because of reward hacking, after restoring its last good checkpoint."""


class StoppedByGate(FairleadError):
    """A round must not continue: people agree too little, or its reward model is worse than the last one."""


class ProcessFailed(FairleadError):
    """A process of a local run ended and is not restarted."""


class EngineFailed(FairleadError):
    """The engine of the policy service cannot start or continue; a restart of the process may help."""


class ClusterRefused(FairleadError):
    """The Kubernetes API refused a request; a retry would be refused as well."""


class InternalError(FairleadError):
    """A bug in the server that was called; carries the id of its log entry."""


_MAX_BITS = 4_096
"""Bits of the largest integer that is shown; Python refuses to convert integers of thousands of digits."""


def _shortened(value: object, limit: int = 200) -> str:
    """Return the representation of a value; of a long one both ends (a path's reason is at its end)."""
    half = limit // 2
    if isinstance(value, str | bytes) and len(value) > limit:
        # Cut first: the representation of millions of characters takes time and memory.
        return f"{value[:half]!r}…{value[-half:]!r} ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]} ({len(text)} characters)"


# Looked up in the method resolution order, so that the nearest ancestor decides.
GRPC_STATUS: dict[type[BaseException], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    StaleWeights: grpc.StatusCode.FAILED_PRECONDITION,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
}

HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
}


def grpc_status(error: BaseException) -> grpc.StatusCode:
    """Return the status of an error: that of its nearest ancestor in the map, or INTERNAL."""
    for ancestor in type(error).__mro__:
        if ancestor in GRPC_STATUS:
            return GRPC_STATUS[ancestor]
    return grpc.StatusCode.INTERNAL


def http_status(error: BaseException) -> int:
    """Return the HTTP status that corresponds to `grpc_status`."""
    return HTTP_STATUS.get(grpc_status(error), 500)


EXIT_CODE: dict[type[BaseException], int] = {
    InvalidInput: 2,
    ModelLoadError: 2,
    QueueMisconfigured: 2,
    SchemaTooNew: 2,
    OutOfMemory: 2,
    NotFinite: 2,
    NothingToTrain: 2,
    ClusterRefused: 2,
    Fenced: 3,
    Stalled: 4,
    StoppedByGuard: 5,
    StoppedByGate: 6,
}
"""Exit codes for the supervisor of a process: 2 do not restart; 3 a newer trainer runs; 4 stalled; 5 stopped
by a guard, do not restart; 6 stopped by the gate of a round."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: that of its nearest ancestor in the map, or 1."""
    return next((EXIT_CODE[ancestor] for ancestor in type(error).__mro__ if ancestor in EXIT_CODE), 1)


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project, for errors about missing packages.

    The name on PyPI is `fairlead-rlhf`: `fairlead` there belongs to another project.
    """
    return f"pip install 'fairlead-rlhf[{extra}]'"


def pickle_refused(model: str, file: str) -> ModelLoadError:
    """Return the error for a model that has weights only as pickle, which can run code when it is read.

    Args:
        model: folder or hub id.
        file: name of the file of weights.
    """
    local = Path(model).expanduser()
    folder = local if local.is_dir() else Path(local.name)
    download = "" if local.is_dir() else f"run `hf download {model} --local-dir {folder}`, then "
    return ModelLoadError(
        f"{model!r} has its weights only as pickle ({file}), which is not read; to convert them once, "
        f"{download}run in this folder: python -c {shlex.quote(_conversion(folder, file))}"
        + ("" if local.is_dir() else f", and give the folder {str(folder)!r}")
    )


def _conversion(folder: Path, file: str) -> str:
    """Return a program that writes the tensors of a file, or of all its parts, beside it as safetensors.

    It names no class of models, which could leave out a head, and runs no code that the pickle contains.
    """
    kind = next((kind for kind in ("adapter_model", "pytorch_model") if file.startswith(kind)), "")
    source = json.dumps(str(folder / (f"{kind}*.bin" if kind else file)))
    target = json.dumps(str(folder / f"{kind.replace('pytorch_', '') or 'model'}.safetensors"))
    return (
        "import glob, torch; from safetensors.torch import save_file; "
        f"save_file({{k: v.contiguous().clone() for f in sorted(glob.glob({source})) for k, v in "
        f'torch.load(f, map_location="cpu", weights_only=True).items()}}, {target}, {{"format": "pt"}})'
    )
