"""The client of the reference service: log-probs under the frozen model. Between workers and the channel."""

from __future__ import annotations

from collections.abc import Sequence

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient
from fairlead.clients.requests import building
from fairlead.errors import CorruptData
from fairlead.types import ReferenceInfo, TokenPair
from fairlead.v1 import reference_service_pb2 as pb
from fairlead.v1 import reference_service_pb2_grpc as pb_grpc


class AsyncReferenceClient(AsyncClient["pb_grpc.ReferenceServiceAsyncStub"]):
    """Looks up log-probs; used within one event loop."""

    _service = "reference"

    def _make_stub(self, channel: aio.Channel) -> pb_grpc.ReferenceServiceAsyncStub:
        return pb_grpc.ReferenceServiceStub(channel)

    async def logprobs(
        self,
        sequences: Sequence[TokenPair],
        *,
        temperature: float,
        timeout_seconds: float | None = None,
        exclusive: bool = False,
        fatal_to_replica: bool = False,
    ) -> list[tuple[float, ...]]:
        """Log π_ref of every response id, in order, at a temperature.

        Args:
            sequences: prompt and response ids, each at least one.
            temperature: the one that was sampled at, greater than 0.
            timeout_seconds: deadline of this call in place of the client's.
            exclusive: the replica computes nothing else meanwhile, and the call is not hedged; implies
                `fatal_to_replica`. For sequences that may be at fault.
            fatal_to_replica: raise ReplicaLost if a replica dies under it, instead of trying the next.

        Raises:
            InvalidInput: for a sequence that cannot be looked up; none is then.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded … once trying again has not helped.
        """
        with building("sequences"):
            request = pb.LogProbsRequest(
                sequences=[
                    pb.LogProbsSequence(
                        prompt_token_ids=pair.prompt_token_ids, response_token_ids=pair.response_token_ids
                    )
                    for pair in sequences
                ],
                temperature=temperature,
                alone=exclusive,
            )
        response = await self._replicas.call(
            lambda stub: stub.LogProbs,
            request,
            timeout_seconds=timeout_seconds,
            fatal_to_replica=fatal_to_replica,
            exclusive=exclusive,
        )
        found = [tuple(one.logprobs) for one in response.sequences]
        if [len(one) for one in found] != [len(pair.response_token_ids) for pair in sequences]:
            raise CorruptData("reference: the answer has another number of log-probs than was asked for")
        return found

    async def info(self, *, timeout_seconds: float | None = None) -> ReferenceInfo:
        """What is served.

        Raises:
            FairleadError: as `logprobs`.
        """
        response = await self._replicas.call(
            lambda stub: stub.GetReferenceInfo, pb.GetReferenceInfoRequest(), timeout_seconds=timeout_seconds
        )
        return ReferenceInfo(codec.model_info_from_pb(response.model))


class ReferenceClient(Blocking[AsyncReferenceClient]):
    """`AsyncReferenceClient` for scripts and notebooks: the same methods, blocking."""

    _kind = AsyncReferenceClient

    def logprobs(
        self, sequences: Sequence[TokenPair], *, temperature: float, timeout_seconds: float | None = None
    ) -> list[tuple[float, ...]]:
        """As `AsyncReferenceClient.logprobs`."""
        work = self._client.logprobs(sequences, temperature=temperature, timeout_seconds=timeout_seconds)
        return self._run(work)

    def info(self, *, timeout_seconds: float | None = None) -> ReferenceInfo:
        """As `AsyncReferenceClient.info`."""
        return self._run(self._client.info(timeout_seconds=timeout_seconds))
