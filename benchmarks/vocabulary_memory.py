"""Measure the memory of a rank for the log-probs of a large vocabulary, forward and backward.

A Llama of one layer, 512 wide, with 128,256 tokens and an output layer of its own, in float32 on the CPU: one
process, two ranks of FSDP, and two ranks that divide layers and vocabulary. Memory is the peak above what the
process held before the forward pass, the largest of all ranks.

`python -m benchmarks.vocabulary_memory WIDTH VOCABULARY TENSOR_PARALLEL` is one rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.result import Result, Settings
from fairlead.config.infrastructure import RanksSection
from fairlead.errors import FairleadError
from fairlead.local.addresses import Ports
from fairlead.nn import allocator
from trainer.distributed import sharding
from trainer.distributed.group import join
from trainer.distributed.place import place
from trainer.sequences import TokenSequence, pad, response_logprobs

TOKENS = 64
"""Tokens with log-probs in the micro-batch."""


def run(settings: Settings) -> dict[str, Result]:
    """Measure each way of dividing the model."""
    width, vocabulary = (32, 1_000) if settings.quick else (512, 128_256)
    one = _measured(width, vocabulary, ranks=1, tensor_parallel=1)
    return {
        name: Result(
            _measured(width, vocabulary, ranks=2, tensor_parallel=parts) / 2**20,
            "MiB",
            one / 2**20,
            "one process",
        )
        for name, parts in (("vocabulary_memory_fsdp", 1), ("vocabulary_memory_tensor_parallel", 2))
    }


def _measured(width: int, vocabulary: int, *, ranks: int, tensor_parallel: int) -> int:
    """Start the ranks; return the most bytes that one of them needs."""
    arguments = [str(width), str(vocabulary), str(tensor_parallel)]
    port = Ports().free("ranks")
    processes = []
    for rank in range(ranks):
        numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in numbers.items()}
        environment["MASTER_ADDR"] = "127.0.0.1"
        command = [sys.executable, "-m", "benchmarks.vocabulary_memory", *arguments]
        processes.append(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise FairleadError("a rank of the benchmark ended with an error")
    return max(int(json.loads(output.splitlines()[-1])) for output in outputs)


def main() -> None:
    """Be one rank, and print the bytes that it needs."""
    width, vocabulary, tensor_parallel = map(int, sys.argv[1:])
    section = RanksSection(tensor_parallel=tensor_parallel)
    with join(place(section), section, device="cpu") as group:
        root = sharding.Root(_model(width, vocabulary))
        sharding.shard(root, torch.device("cpu"), compute=torch.float32, group=group)
        batch = pad([TokenSequence(tuple(range(3, TOKENS + 4)), 1)], torch.device("cpu"))
        allocator.give_back()
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = _status("VmRSS")
        logprobs_N = root(response_logprobs, batch, temperature=1.0)
        logprobs_N.sum().backward()
        needed = _status("VmHWM") - before
        group.barrier()
    print(json.dumps(needed))


def _model(width: int, vocabulary: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = LlamaForCausalLM(config)
    return model


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
