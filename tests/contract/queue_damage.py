"""Damages entries of the queue in place."""

from __future__ import annotations

from typing import Any

import redis

_PLACEHOLDER = {b"gone": b""}


def damaged(payload: bytes, *, cut: bool) -> bytes:
    """Return a payload without its last third, or with a flipped bit in its last byte."""
    return payload[: -len(payload) // 3] if cut else payload[:-1] + bytes([payload[-1] ^ 4])


def damage(raw: redis.Redis, stream: str, entry: str, field: bytes, *, cut: bool) -> None:
    """Damage an entry in place: its ID, its position and its pending state stay the same.

    Redis has no command for that, so the stream is recreated with its groups, in one transaction.
    """

    def rewrite(pipe: Any) -> None:
        content = {name.decode(): fields for name, fields in pipe.xrange(stream)}
        info, groups = pipe.xinfo_stream(stream), pipe.xinfo_groups(stream)
        names = [group["name"] for group in groups]
        consumers = {name: pipe.xinfo_consumers(stream, name) for name in names}
        held = {name: pipe.xpending_range(stream, name, "-", "+", 10_000) for name in names}
        content[entry][field] = damaged(content[entry][field], cut=cut)
        gone = {one["message_id"].decode() for found in held.values() for one in found} - content.keys()
        pipe.multi()
        pipe.delete(stream)
        for name in sorted(content.keys() | gone, key=lambda name: tuple(map(int, name.split("-")))):
            pipe.xadd(stream, content.get(name, _PLACEHOLDER), id=name)
        for group in groups:
            name = group["name"]
            pipe.xgroup_create(stream, name, group["last-delivered-id"], entries_read=group["entries-read"])
            for consumer in consumers[name]:
                pipe.xgroup_createconsumer(stream, name, consumer["name"])
            for one in held[name]:
                pipe.xclaim(
                    *(stream, name, one["consumer"], 0, [one["message_id"]]),
                    idle=one["time_since_delivered"],
                    retrycount=one["times_delivered"],
                    force=True,
                    justid=True,
                )
        if gone:
            pipe.xdel(stream, *gone)
        last, deleted = info["last-generated-id"], info["max-deleted-entry-id"]
        pipe.execute_command(
            "XSETID", stream, last, "ENTRIESADDED", info["entries-added"], "MAXDELETEDID", deleted
        )

    raw.transaction(rewrite, stream)
