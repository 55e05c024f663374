"""The ranks of one trainer as a group: joining, bytes between ranks, and orders from rank 0 to the others.

A single rank forms a group without torch.distributed: every method is then the identity or does nothing.
Bytes are never pickled. Ranks that wait for an order poll the store and are in no collective, so they may
wait without limit; `heartbeat` ends them if another rank is lost.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from fairlead.config.infrastructure import RanksSection
from fairlead.errors import ConfigError, FairleadError, RankLost, exit_code
from fairlead.local.addresses import LOOPBACK
from trainer.distributed.heartbeat import RESTARTED, Beat, Heartbeat
from trainer.distributed.place import LISTENER, Place

logger = logging.getLogger(__name__)

_FOREVER = timedelta(days=365)
"""Time limit of collectives: the heartbeat decides instead, which names the rank."""
_CONNECT_SECONDS = 5.0
_REPORT_SECONDS = 30.0
_KEPT_ORDERS = 8
"""Headers of past orders that stay in the store; every rank has read them long before."""


class Group:
    """The ranks of one trainer, seen from one of them.

    With several ranks it holds the default process group of torch.distributed: gloo for tensors on the CPU,
    and nccl for those on GPUs.
    """

    def __init__(
        self,
        place: Place,
        *,
        tensor_parallel: int = 1,
        store: Store | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """
        Args:
            place: the place of this rank.
            tensor_parallel: how many consecutive ranks divide a layer; divides their number.
            store: of the joined ranks; None for a single one.
            heartbeat: the same.
        """
        self._place = place
        self.tensor_parallel = tensor_parallel
        """How many consecutive ranks divide a layer and read the same sequences; 1: none."""
        self._store = store
        self._heartbeat = heartbeat
        self._order = 0

    @classmethod
    def single(cls) -> Self:
        """Return the group of a single rank."""
        return cls(Place())

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return self._place.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._place.size

    @property
    def local_rank(self) -> int:
        """The number of this rank on its node."""
        return self._place.local_rank

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only one that speaks to the queue and writes the files of the run."""
        return self._place.rank == 0

    @property
    def num_shares(self) -> int:
        """Into how many shares the sequences of a mini-batch are divided."""
        return self._place.size // self.tensor_parallel

    @property
    def share(self) -> int:
        """The number of this rank's share, which those that divide a layer with it compute, too."""
        return self._place.rank // self.tensor_parallel

    @property
    def counts(self) -> bool:
        """Whether the figures of this rank count: those of the first rank of each share do."""
        return self._place.rank % self.tensor_parallel == 0

    def broadcast(self, data: bytes, *, source: int = 0) -> bytes:
        """Return the bytes of the rank `source`, on every rank; those of the other ranks are ignored."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, source)
        content = _tensor(data) if self.rank == source else torch.empty(int(length), dtype=torch.uint8)
        if content.numel():
            dist.broadcast(content, source)
        return content.numpy().tobytes()

    def gather(self, data: bytes) -> list[bytes]:
        """Return, on rank 0, the bytes of every rank by its number; on the others an empty list."""
        if self.size == 1:
            return [data]
        lengths = self._lengths(data)
        own = _padded(data, max(lengths))
        parts = [torch.empty_like(own) for _ in lengths] if self.is_first else None
        dist.gather(own, parts)
        return _cut(parts or [], lengths)

    def all_gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank by its number, on every rank."""
        if self.size == 1:
            return [data]
        lengths = self._lengths(data)
        own = _padded(data, max(lengths))
        parts = [torch.empty_like(own) for _ in lengths]
        dist.all_gather(parts, own)
        return _cut(parts, lengths)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_gather(b"")

    def send(self, order: str, payload: bytes = b"") -> None:
        """Give an order to the other ranks; call it on rank 0, then carry out the order as they do."""
        if self._store is None:
            return
        self._order += 1
        header = json.dumps({"order": order, "has_payload": bool(payload)})
        self._store.set(_order_key(self._order), header)
        self._store.delete_key(_order_key(self._order - _KEPT_ORDERS))
        self._report(order, busy=True, new=True)
        if payload:
            self.broadcast(payload)

    def next_order(self) -> tuple[str, bytes]:
        """Wait for the next order of rank 0, without limit; return its name and its payload.

        Raises:
            RankLost: if rank 0 has ended.
        """
        assert self._store is not None
        self._report("waits for an order of rank 0", busy=False)
        key = _order_key(self._order + 1)
        # A few milliseconds are nothing beside an order; the calls of many ranks must not keep rank 0 busy.
        pause_seconds = 0.005 + 0.0002 * self.size
        try:
            while not self._store.check([key]):
                time.sleep(pause_seconds)
            header = json.loads(self._store.get(key))
        except RuntimeError as error:
            raise RankLost(f"rank 0 has ended while rank {self.rank} waited for its next order") from error
        self._order += 1
        self._report(header["order"], busy=True, new=True)
        return header["order"], self.broadcast(b"") if header["has_payload"] else b""

    def progress(self, doing: str) -> None:
        """Report a step of the order in progress; a rank that reports none for long is taken to hang.

        Args:
            doing: what this rank does now, for messages.
        """
        self._report(doing, busy=True)

    def idle(self, doing: str = "waits for rollouts") -> None:
        """Report that the last order is carried out, or is one without a limit."""
        self._report(doing, busy=False)

    def _report(self, doing: str, *, busy: bool, new: bool = False) -> None:
        if self._heartbeat is not None:
            self._heartbeat.report(doing, busy=busy, order=self._order if new else None)

    def _lengths(self, data: bytes) -> list[int]:
        found = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(found, torch.tensor([len(data)]))
        return [int(length) for length in found]


@contextmanager
def join(place: Place, section: RanksSection, *, device: str = "auto") -> Iterator[Group]:
    """Join the ranks for the duration of the block; a single rank joins nobody.

    An error that leaves the block is reported to the other ranks, which end with the same exit code.

    Args:
        place: the place of this process.
        section: limits.
        device: device of the section that is trained: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: if this rank has no GPU of its own, or the ranks cannot be divided as configured.
        RankLost: if the ranks do not find one another in time, or if one ended during the block.
    """
    if place.size % section.tensor_parallel:
        raise ConfigError(
            "ranks.tensor_parallel",
            got=section.tensor_parallel,
            allowed=f"a number that divides the number of ranks, {place.size}",
        )
    if place.size == 1:
        yield Group(place)
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        _select_gpu(place)
    store = _meet(place, section)
    # A connection of its own: the calls of one connection wait for one another.
    heartbeat = Heartbeat(_connection(place, serves=False), place.rank, place.size, section)
    heartbeat.start()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=_FOREVER,
    )
    logger.info("rank %d of %d has joined at %s", place.rank, place.size, place.address)
    try:
        yield Group(place, tensor_parallel=section.tensor_parallel, store=store, heartbeat=heartbeat)
    except BaseException as error:
        _leave(place, heartbeat, error)
        raise
    heartbeat.finish()
    dist.destroy_process_group()


def _leave(place: Place, heartbeat: Heartbeat, error: BaseException) -> None:
    """Report to the others why this rank ends, unless it ends because another one did.

    Raises:
        RankLost: if another rank has ended.
    """
    if isinstance(error, SystemExit):
        heartbeat.fail(error.code if isinstance(error.code, int) else 1, "it was stopped")
        return
    if not isinstance(error, FairleadError | KeyboardInterrupt):
        # A collective fails at once if a peer dies. If that gave a reason, the heartbeat ends this process.
        silent = heartbeat.silent()
        if silent:
            raise RankLost(
                f"{', '.join(silent)} has ended; rank {place.rank} was interrupted by: {error}"
            ) from error
    heartbeat.fail(exit_code(error), f"{type(error).__name__}: {error}")


def _meet(place: Place, section: RanksSection) -> TCPStore:
    """Wait for the other ranks; return the store that all share."""
    deadline = time.monotonic() + section.join_seconds
    reported = time.monotonic()
    store: TCPStore | None = None
    missing = [0]
    while time.monotonic() < deadline:
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            logger.info("rank %d waits for %s to join at %s", place.rank, _named(missing), place.address)
        if store is None:
            store = _connected(place)
            if store is not None and not _registered(store, place):
                # The others still run with a predecessor of this rank, and end now.
                store, missing = None, [0]
                time.sleep(1.0)
            continue
        try:
            missing = [rank for rank in range(place.size) if not store.check([Heartbeat.key(rank)])]
            if not missing:
                return store
        except RuntimeError:
            store, missing = None, [0]
        time.sleep(0.1)
    raise RankLost(
        f"rank {place.rank} of {place.size} waited {section.join_seconds:g} s (ranks.join_seconds) for "
        f"{_named(missing)} to join at {place.address}"
    )


def _connected(place: Place) -> TCPStore | None:
    """Return a connection to the store; None if rank 0 does not serve it yet."""
    try:
        return _connection(place, serves=place.serves_store)
    except RuntimeError as error:
        if place.serves_store:
            raise RankLost(f"rank 0 cannot listen at {place.address}: {error}") from error
        return None


def _connection(place: Place, *, serves: bool) -> TCPStore:
    listener = _loopback_listener(place) if serves else None
    return TCPStore(
        place.host,
        place.port,
        None,
        is_master=serves,
        timeout=timedelta(seconds=_CONNECT_SECONDS),
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def _loopback_listener(place: Place) -> int | None:
    """Return a listening socket if all ranks are on this machine; the store would listen on every address."""
    if place.host != LOOPBACK:
        return None
    try:
        with socket.socket(fileno=place.listener) as listener:
            if place.listener is None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((place.host, place.port))
            bound = listener.getsockname()
            if bound != (place.host, place.port):
                raise ConfigError(
                    LISTENER,
                    got=f"{place.listener}, a socket at {bound}",
                    allowed=f"one that is bound to {place.address}, as the launcher passes it",
                )
            listener.set_inheritable(False)
            listener.listen()
            return listener.detach()
    except OSError as error:
        raise RankLost(f"rank 0 cannot listen at {place.address}: {error}") from error


def _registered(store: TCPStore, place: Place) -> bool:
    """Leave the first beat of this rank; return whether it is the first process with this number."""
    try:
        first = bool(store.add(f"joins/{place.rank}", 1) == 1)
        if first:
            store.set(Heartbeat.key(place.rank), Beat(socket.gethostname()).to_json())
        else:
            store.set(RESTARTED, str(place.rank))
    except RuntimeError:
        return False
    return first


def _select_gpu(place: Place) -> None:
    visible = torch.cuda.device_count()
    # A launcher may show each process only its own.
    index = 0 if visible == 1 else place.local_rank
    if index >= visible:
        raise ConfigError(
            "LOCAL_RANK", got=place.local_rank, allowed=f"below the number of visible GPUs, {visible}"
        )
    torch.cuda.set_device(index)


def _order_key(number: int) -> str:
    return f"order/{number}"


def _named(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (" …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _padded(data: bytes, length: int) -> Tensor:
    return _tensor(data + bytes(max(1, length) - len(data)))


def _cut(parts: list[Tensor], lengths: list[int]) -> list[bytes]:
    return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=False)]
