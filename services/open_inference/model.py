"""The reward model as the Open Inference Protocol presents it: one name, the versions of its weights.

Sits between the servicer or router, which take messages apart, and the function that computes scores.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fairlead.errors import InvalidInput, NotFound, Unavailable
from fairlead.types import Priority, RewardInfo, ScoreItem, Scores
from services.open_inference import messages, tensors
from services.open_inference.messages import Message
from services.open_inference.statistics import InferenceStatistics
from services.open_inference.tensors import InputTensor
from services.open_inference.versions import find
from services.runtime.caller_fields import caller_fields
from services.runtime.large import in_thread_if_large

NOT_OFFERED = {
    "repository": "models are not loaded or unloaded by this protocol: use `fairlead reload`",
    "shared memory": "shared memory is not offered: send tensors in the request",
    "trace": "traces are not set by this protocol",
    "logging": "logs are set by [observe] of the service's configuration",
}
"""Parts of the protocol that are not offered, and what to do instead."""

_MAX_UINT64 = 2**64 - 1
_REQUEST_FIELDS = {
    "request": "inputs",
    "items": "inputs[]",
    "items.whole_text": f"inputs.{tensors.SENTENCES}[]",
    "items.tokens": f"inputs.{tensors.TOKENS}[]",
}
"""Fields of a score request as the caller of this protocol knows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """An inference request, without its framing."""

    inputs: Sequence[InputTensor]
    """The input tensors."""
    outputs: Sequence[tuple[str, Sequence[str]]] = ()
    """Names of the requested outputs, each with the names of its parameters; none for all."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the request; `priority` and `timeout` are read."""


Run = Callable[[list[ScoreItem], Priority, float | None], Awaitable[Scores]]
"""Scores items, given the priority and the caller's timeout in seconds."""


class InferenceModel:
    """Describes the reward model, and scores inference requests. Used within one event loop."""

    def __init__(
        self,
        name: str,
        *,
        max_batch_size: int,
        models: Callable[[], Sequence[RewardInfo]],
        ready: Callable[[], bool],
        aliases: Sequence[str] = (),
    ) -> None:
        """
        Args:
            name: name of the model in the protocol.
            max_batch_size: largest number of rows of a request.
            models: returns the versions that can be requested, the current one first.
            ready: returns whether requests can be scored.
            aliases: further names of the model in requests.
        """
        self.name = name
        self._names = frozenset((name, *aliases))
        self._max_batch_size = max_batch_size
        self._models = models
        self._ready = ready
        self._statistics = InferenceStatistics()

    @property
    def ready(self) -> bool:
        """Whether requests can be scored."""
        return self._ready()

    def check_name(self, name: str) -> None:
        """Raise NotFound unless `name` is a name of the model."""
        if name not in self._names:
            raise NotFound(f"no model {name[:80]!r}; this server has {self.name!r}")

    def find(self, version: str) -> RewardInfo:
        """Return the model of a version, of the current one if `version` is empty.

        Raises:
            NotFound: the version is not served.
            Unavailable: the served versions are not known yet.
        """
        return find(self._models(), version, name=self.name)

    def metadata(self) -> Message:
        """Return ModelMetadataResponse."""
        return messages.metadata(self.name, versions=[info.model_version for info in self._models()])

    def config(self, version: str) -> Message:
        """Return ModelConfig."""
        return messages.config(self.name, max_batch_size=self._max_batch_size, info=self.find(version))

    def statistics(self, version: str) -> Message:
        """Return ModelStatisticsResponse of a version, of all served ones if `version` is empty."""
        infos = [self.find(version)] if version else self._models()
        versions = [info.model_version for info in infos]
        return {
            "model_stats": [
                messages.statistics(self.name, each, self._statistics.of(each)) for each in versions
            ]
        }

    def index(self, *, only_ready: bool) -> list[Message]:
        """Return the models of RepositoryIndexResponse, an entry per version."""
        ready = self.ready
        if only_ready and not ready:
            return []
        return [messages.index_entry(self.name, info.model_version, ready=ready) for info in self._models()]

    async def score(
        self, version: str, read: Callable[[], InferenceRequest], run: Run, *, num_bytes: int
    ) -> Scores:
        """Check an inference request, score its items, and count it.

        Args:
            version: the requested version; empty for any.
            read: takes the request out of its framing; raises InvalidInput.
            run: computes the scores.
            num_bytes: size of the request.

        Raises:
            NotFound: the version is not served.
            InvalidInput: the request is not valid; errors of `run` name the request's own fields.
            FairleadError: as `run`.
        """
        info = self._known(version)
        with self._statistics.counting(info.model_version if info is not None else "") as count:
            work = partial(self._read, read, info)
            items, priority, timeout_seconds = await in_thread_if_large(work, num_bytes)
            with caller_fields(_REQUEST_FIELDS):
                scores = await run(items, priority, timeout_seconds)
            count(scores)
        return scores

    def _read(
        self, read: Callable[[], InferenceRequest], info: RewardInfo | None
    ) -> tuple[list[ScoreItem], Priority, float | None]:
        request = read()
        tensors.check_outputs(request.outputs)
        priority = _priority(request.parameters)
        timeout_seconds = _timeout_seconds(request.parameters)
        items = tensors.read_items(request.inputs, info, max_items=self._max_batch_size)
        return items, priority, timeout_seconds

    def _known(self, version: str) -> RewardInfo | None:
        if version:
            return self.find(version)
        try:
            return self._models()[0]
        except Unavailable:
            return None  # the items are checked again where they are scored


def _priority(parameters: Mapping[str, object]) -> Priority:
    """Read Triton's `priority`: 1 is the highest; 0 is the model's default, which is 1 here."""
    return Priority.BULK if _integer(parameters, "priority") > 1 else Priority.ONLINE


def _timeout_seconds(parameters: Mapping[str, object]) -> float | None:
    """Read Triton's `timeout`, in microseconds; 0 means none."""
    return _integer(parameters, "timeout") / 1e6 or None


def _integer(parameters: Mapping[str, object], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_UINT64:
        return value
    if value is None:
        got: object = "nothing"
    else:
        got = value if isinstance(value, bool | int | float) else f"a {type(value).__name__}"
    raise InvalidInput(f"parameters.{name}", got=got, allowed=f"an integer from 0 to {_MAX_UINT64}")
