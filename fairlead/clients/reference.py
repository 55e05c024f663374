"""The client of the reference service, which returns log-probs under the frozen reference model.

Sits between its users and `fairlead.rpc`.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpc import aio

from fairlead import codec
from fairlead.clients.blocking import Blocking
from fairlead.clients.client import AsyncClient, building
from fairlead.errors import CorruptData
from fairlead.types import ReferenceInfo, TokenPair
from fairlead.v1 import reference_service_pb2 as pb
from fairlead.v1 import reference_service_pb2_grpc as pb_grpc


class AsyncReferenceClient(AsyncClient["pb_grpc.ReferenceServiceAsyncStub"]):
    """Returns log-probs. Used within one event loop."""

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
        """Return log π_ref of every response token at a temperature, for each sequence in order.

        Args:
            sequences: prompt and response ids, at least one of each.
            temperature: sampling temperature, greater than 0.
            timeout_seconds: deadline of this call; None for that of the client.
            exclusive: the replica computes nothing else meanwhile, and the call is not hedged; for a sequence
                that may kill a replica. Implies `fatal_to_replica`.
            fatal_to_replica: raise ReplicaLost if a replica dies during the call, instead of retrying.

        Raises:
            InvalidInput: if a sequence is invalid; nothing is then computed.
            FairleadError: Unavailable, Overloaded, DeadlineExceeded …, after retries.
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
            raise CorruptData("reference: the number of log-probs differs from the number of response tokens")
        return found

    async def info(self, *, timeout_seconds: float | None = None) -> ReferenceInfo:
        """Return the model that is served.

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
