"""What the published weights compute on a fixed sequence, for engines that load weights by code of others.

A replica of the policy uses a version only after it computed the same (services/policy/vllm/weights.py).
"""

from __future__ import annotations

import random

import torch

from fairlead.config.base import DType
from fairlead.nn.loading import max_sequence_tokens, vocabulary_size
from fairlead.transports.weights.base import Probe
from trainer.ppo.actor_critic import ActorCritic
from trainer.sequences import TokenSequence, pad

_LENGTH = 32
"""Tokens of the sequence: enough to read every layer and position of a block of vLLM's cache."""


@torch.no_grad()
def probe(models: ActorCritic, *, published_as: DType) -> Probe:
    """Return the log-probs of a sequence that depends only on the size of the vocabulary.

    Every rank calls this.

    Args:
        models: the policy.
        published_as: type of the published tensors, if they are not an adapter's.
    """
    length = min(_LENGTH, max_sequence_tokens(models.policy, 0) - 1)
    size = vocabulary_size(models.policy)
    drawn = random.Random(0)
    token_ids = tuple(drawn.randrange(size) for _ in range(length))
    sequence = TokenSequence(token_ids, prompt_length=1)
    logprobs_N = models.logprobs(pad([sequence], models.device), temperature=1.0)
    is_exact = models.dtype == torch.float32 and (models.adapter is not None or published_as == "float32")
    return Probe(token_ids, tuple(logprobs_N.tolist()), "float32" if is_exact else "bfloat16")
