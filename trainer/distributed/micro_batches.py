"""The micro-batches of each rank: balanced by tokens, and as many for every rank. With tensor parallelism the
ranks that divide a layer have the same ones, and count as one rank here.

FSDP gathers weights in step on all ranks, so a rank with fewer micro-batches than another would hang both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

from trainer.distributed.group import Group
from trainer.sequences import PaddedSequences, TokenSequence, overhead_tokens, pack, pad

_Item = TypeVar("_Item")

NOTHING = TokenSequence((0,), 1)
"""Fills a micro-batch without sequences: no response token, so it changes no gradient."""


def plan(lengths: Sequence[int], *, max_tokens: int, ranks: int, overhead: int = 0) -> list[list[list[int]]]:
    """Divide sequences into the micro-batches of every rank, as many for each.

    The longest sequence left goes to the rank with the fewest tokens, and each rank packs its own. A rank
    with fewer micro-batches than another gets empty ones. The result depends only on the lengths, so all
    ranks compute the same one.

    Args:
        lengths: tokens of each sequence.
        max_tokens: padded tokens of a micro-batch.
        ranks: how many there are.
        overhead: what a micro-batch costs beyond its tokens, in tokens.

    Returns:
        For each rank its micro-batches, as indices of sequences.
    """
    found = [
        [
            [own[index] for index in group]
            for group in pack([lengths[i] for i in own], max_tokens=max_tokens, overhead=overhead)
        ]
        for own in deal(lengths, ranks=ranks)
    ]
    return filled(found)


def deal(sizes: Sequence[int], *, ranks: int) -> list[list[int]]:
    """Return the items of each rank: the largest one left goes to the rank with the least so far."""
    members: list[list[int]] = [[] for _ in range(ranks)]
    total = [0] * ranks
    for index in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
        rank = min(range(ranks), key=lambda one: (total[one], len(members[one]), one))
        members[rank].append(index)
        total[rank] += sizes[index]
    return members


def filled(parts: list[list[list[_Item]]]) -> list[list[list[_Item]]]:
    """Return the micro-batches of every rank, with empty ones up to the number of the rank with most."""
    most = max(map(len, parts))
    return [[*own, *([] for _ in range(most - len(own)))] for own in parts]


def share(lengths: Sequence[int], device: torch.device, *, max_tokens: int, group: Group) -> list[list[int]]:
    """Return the micro-batches of this rank by `plan`, for models that compute on `device`."""
    overhead = overhead_tokens(device)
    if group.num_shares == 1:
        return list(pack(lengths, max_tokens=max_tokens, overhead=overhead))
    found = plan(lengths, max_tokens=max_tokens, ranks=group.num_shares, overhead=overhead)
    return found[group.share]


def padded(
    sequences: Sequence[TokenSequence],
    device: torch.device,
    *,
    max_tokens: int,
    group: Group | None = None,
    together: int = 1,
) -> Iterator[tuple[list[int], PaddedSequences]]:
    """Yield the indices and the padded sequences of each micro-batch of this rank.

    One that fills up has no indices and no response token.

    Args:
        sequences: of all ranks.
        device: where the models compute.
        max_tokens: padded tokens of a micro-batch.
        group: the ranks; None: only this process.
        together: number of consecutive sequences that a micro-batch has all of or none, in this order; it
            divides the number of sequences.
    """
    group = group or Group.single()
    lengths = [len(sequence.token_ids) for sequence in sequences]
    units = [range(start, start + together) for start in range(0, len(sequences), together)]
    longest = [max(lengths[index] for index in unit) for unit in units]
    shared = share(longest, device, max_tokens=max(1, max_tokens // together), group=group)
    parts = [[index for number in part for index in units[number]] for part in shared]
    for number, part in enumerate(parts, start=1):
        group.progress(f"micro-batch {number} of {len(parts)}")
        yield part, pad([sequences[index] for index in part] or [NOTHING], device)
