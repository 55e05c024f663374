"""What the ranks of the tests do; each function runs in processes of its own (tests/ranks.py)."""

from __future__ import annotations

import sys
import time

from torch import nn

from fairlead.config.training import LoraSection, PpoSection
from fairlead.errors import NotFinite
from trainer.distributed.group import Group
from trainer.distributed.sharding import local
from trainer.ppo import actor_critic
from trainer.sequences import TokenSequence, pad


def exchange(group: Group) -> dict[str, object]:
    """Send bytes in every way, and orders with and without a payload."""
    own = bytes([group.rank]) * (group.rank * 1000)
    found: dict[str, object] = {
        "broadcast": [group.broadcast(own, source=rank) == bytes([rank]) * rank * 1000 for rank in (0, 1)],
        "gather": [len(part) for part in group.gather(own)],
        "all_gather": [
            part == bytes([rank]) * rank * 1000 for rank, part in enumerate(group.all_gather(own))
        ],
    }
    orders = [("start", b""), ("learn", bytes(range(256)) * 5000), ("stop", b"")]
    for _ in range(20):
        for name, payload in orders:
            if group.is_first:
                group.send(name, payload)
                group.progress("a step")
                group.idle()
            elif group.next_order() != (name, payload):
                return {"order": name}
        group.barrier()
    return found


def work(group: Group, fault: str, rank: int) -> None:
    """Carry out orders without end; in the third, one rank has the fault."""
    for number in range(1, 1_000_000):
        if group.is_first:
            group.send("learn", b"rollouts")
        else:
            group.next_order()
        group.progress(f"micro-batch {number}")
        if number == 3:
            sys.stdout.write("working\n")
            sys.stdout.flush()
            if rank == group.rank and fault == "hang":
                time.sleep(1000)
            if rank == group.rank and fault == "error":
                raise NotFinite("ppo: the loss is nan")
            if rank == group.rank and fault == "bug":
                raise ZeroDivisionError("division by zero")
        group.barrier()
        group.idle()
        time.sleep(0.01)


def wait(group: Group) -> None:
    """Wait: rank 0 for something else than the other ranks, which wait for an order."""
    sys.stdout.write("working\n")
    sys.stdout.flush()
    if group.is_first:
        time.sleep(1000)
    group.next_order()


def held(group: Group, path: str, lora_rank: int) -> dict[str, int]:
    """Return the bytes of weights, gradients and moments of the trainer that this rank holds after a step."""
    section = PpoSection(device="cpu", lora=LoraSection(rank=lora_rank))
    models = actor_critic.load(path, section, group=group)
    batch = pad([TokenSequence((5, 6, 7, 8, 9), 2)], models.device)
    (models.logprobs(batch, temperature=1.0).sum() + models.values(batch).sum()).backward()
    parameters = [
        parameter for model in (models.policy, models.critic) for parameter in nn.Module.parameters(model)
    ]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradient_bytes = sum(local(gradient).nbytes for gradient in gradients)
    models.step({"policy_loss": 0.0, "value_loss": 0.0}, where="in the test")
    moments = [
        tensor
        for optimizer in models.optimizers.values()
        for state in optimizer.state.values()
        for tensor in (state["exp_avg"], state["exp_avg_sq"])
    ]
    return {
        "weights": sum({id(one): local(one).nbytes for one in parameters}.values()),
        "gradients": gradient_bytes,
        "optimizer": sum(local(tensor).nbytes for tensor in moments),
    }
