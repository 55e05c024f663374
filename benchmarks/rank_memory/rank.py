"""One rank of the benchmark: `python -m benchmarks.rank_memory.rank STAGE FILE`; rank 0 prints the peak
memory of every rank, in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch

from fairlead.config import RunConfig, load
from trainer.distributed.group import Group, join
from trainer.distributed.place import place
from trainer.ppo import learner
from trainer.ppo.batch import RolloutBatch
from trainer.reward_model import train as reward_model
from trainer.sequences import TokenSequence
from trainer.sft import train as sft

_SAMPLE_SECONDS = 0.005


def main() -> None:
    """Join the other ranks, and do the work of a stage."""
    stage, file = sys.argv[1], Path(sys.argv[2])
    config = load(file)
    peak = Peak()
    with join(place(config.ranks), config.ranks, device="cpu") as group:
        if stage == "sft":
            sft.train(config, group=group)
        elif stage == "reward_model":
            reward_model.train(config, group=group)
        else:
            _ppo(config, group)
        every = [int(one) for one in group.all_gather(str(peak.bytes).encode())]
    if group.is_first:
        print(json.dumps(every))


def _ppo(config: RunConfig, group: Group) -> None:
    """Do two updates on rollouts of the longest sequences, with a micro-batch for every rank."""
    trained = learner.load(config, learner.initial_tokenizer(config), group=group)
    for update in range(2):
        trained.learn(_rollouts(config), update=update)


def _rollouts(config: RunConfig) -> RolloutBatch:
    answer, count = config.sampling.max_new_tokens, config.ppo.batch_size
    length = config.policy.max_sequence_tokens
    draws = torch.Generator().manual_seed(0)
    sequences = [
        TokenSequence(tuple(torch.randint(3, 400, (length,), generator=draws).tolist()), answer)
        for _ in range(count)
    ]
    logprobs_N = torch.full((count * answer,), -10.0)
    return RolloutBatch(
        task_ids=tuple(range(count)),
        sequences=tuple(sequences),
        groups_B=torch.arange(count),
        behaviour_N=logprobs_N,
        reference_N=logprobs_N.clone(),
        scores_B=torch.randn(count, generator=draws),
        cut_off_B=torch.zeros(count, dtype=torch.bool),
        stale_B=torch.zeros(count, dtype=torch.bool),
        lengths_B=torch.full((count,), answer),
        mask_BT=torch.ones((count, answer), dtype=torch.bool),
    )


class Peak:
    """The highest memory of this process from now on, sampled by a thread.

    It is anonymous memory, plus the libraries as they are mapped now. The weights that a process maps to read
    them count as resident too, but the kernel drops such pages when it needs them; with them the same run
    differed by 500 MiB.
    """

    def __init__(self) -> None:
        self._libraries = _status("RssFile")
        self._highest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return self._highest + self._libraries

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, _status("RssAnon"))


def _status(field: str) -> int:
    """Return a size in `/proc/self/status`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
