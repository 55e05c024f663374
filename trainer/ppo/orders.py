"""The orders of rank 0 to the other ranks, and what all of them then do with their part of the models.

Rank 0 is the trainer: only it speaks to the queue and commits files. The others load the same models and
follow. Every rank carries out an order with the same calls, because each of them has collectives in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.nn.loading import set_threads
from fairlead.transports.weights.base import Probe, Shard
from fairlead.types import WeightVersion
from trainer.checkpoint import Checkpoint, CheckpointStore, PendingCheckpoint
from trainer.distributed import slices
from trainer.distributed.group import Group
from trainer.ppo import learner, publish
from trainer.ppo.actor_critic import with_tensors
from trainer.ppo.batch import RolloutBatch
from trainer.ppo.learner import Learner
from trainer.ppo.probe import probe
from trainer.sequences import TokenSequence

_LOADING = "loads its models"
_READING = "reads a checkpoint"
"""Both have no limit: how long they take depends on where the files are."""


class Leader:
    """The models of all ranks, as rank 0 uses them. With one rank it only calls them."""

    def __init__(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase, group: Group) -> None:
        """Load the part of this rank; the others load theirs when they begin to follow."""
        self._config = config
        self._tokenizer = tokenizer
        self.group = group
        self.group.send("start")
        self.group.idle(_LOADING)
        self.learner = learner.load(config, tokenizer, group=group)
        self.pending: PendingCheckpoint | None = None
        """The checkpoint that is being written."""

    def check_weights(self) -> None:
        """Check the weights before they are published for the first time; see `ActorCritic.check_weights`."""
        self.group.send("check")
        self.learner.models.check_weights()
        self.group.idle()

    def learn(
        self, rollouts: RolloutBatch, *, update: int, on_phase: Callable[[str], None]
    ) -> dict[str, float]:
        """Do one update; see `Learner.learn`."""
        if self.group.size > 1:
            self.group.send("learn", encode(rollouts, update=update))
        figures = self.learner.learn(rollouts, update=update, on_phase=on_phase)
        self.group.idle()
        return figures

    def save(self, checkpoints: CheckpointStore, version: WeightVersion, state: Mapping[str, object]) -> None:
        """Write a checkpoint.

        Raises:
            Fenced: if a newer incarnation was claimed.
        """
        checkpoints.save(
            version,
            tensors=self.learner.models.state(),
            state=state,
            group=self.group,
            announce=lambda folder: self.group.send("save", _folder(folder)),
        )
        self.group.idle()

    def begin_save(
        self, checkpoints: CheckpointStore, version: WeightVersion, state: Mapping[str, object]
    ) -> None:
        """Copy what a checkpoint holds, and let threads of all ranks write it; `commit` makes it valid.

        Raises:
            Fenced: if a newer incarnation was claimed.
        """
        self.pending = checkpoints.begin(
            version,
            tensors=self.learner.models.state(),
            state=state,
            group=self.group,
            announce=lambda folder: self.group.send("copy", _folder(folder)),
        )
        self.group.idle()

    def commit(self) -> None:
        """Wait for the checkpoint that `begin_save` has begun, and commit it.

        Raises:
            Fenced: if a newer incarnation was claimed.
            OSError: if a disk is full.
        """
        assert self.pending is not None
        self.group.send("commit")
        self.pending.commit()
        self.pending = None
        self.group.idle()

    def write_shards(self, folder: Path) -> list[Shard]:
        """Write the policy's weights; see `publish.write_shards`."""
        self.group.send("publish", _folder(folder))
        found = _write_shards(self._config, self.learner, folder)
        self.group.idle()
        return found

    def probe(self) -> Probe | None:
        """Return what the policy's weights compute, with which vLLM is compared; None for the other engine.

        The other engine replaces every tensor by itself.
        """
        if self._config.policy.engine != "vllm":
            return None
        self.group.send("probe")
        found = probe(self.learner.models, published_as=self._config.weights.dtype)
        self.group.idle()
        return found

    def load(self, checkpoint: Checkpoint | None) -> None:
        """Continue from a checkpoint; None: begin with the initial models.

        Raises:
            CorruptCheckpoint: if it does not fit the models.
        """
        if checkpoint is None:
            self.group.send("reset")
            self.group.idle(_LOADING)
            self.learner = learner.load(self._config, self._tokenizer, group=self.group)
        else:
            self.group.send("load", json.dumps({"version": str(checkpoint.version)}).encode())
            self.group.idle(_READING)
            _load(self.learner, checkpoint)
        self.group.idle()

    def save_model(self, path: Path, checkpoint: Checkpoint | None = None) -> None:
        """Write the policy as a model folder.

        Args:
            path: the folder.
            checkpoint: write its policy; None: the present one. Several ranks then continue from it.

        Raises:
            CorruptCheckpoint: if it does not fit the models.
        """
        policy = self.learner.models.policy
        if checkpoint is not None and self.group.size > 1:
            self.load(checkpoint)
        elif checkpoint is not None:
            policy = with_tensors(policy, checkpoint.tensors["policy"])
        self.group.send("export")
        _save_model(self._config, path, policy, self._tokenizer, self.group)
        self.group.idle()

    def save_average(self, path: Path) -> None:
        """Write the average of the policy's weights as a model folder, or remove it without `ema_decay`."""
        if self.learner.models.average is None:
            shutil.rmtree(path, ignore_errors=True)  # of an earlier run, before --force
            return
        self.group.send("export_average")
        _save_average(self._config, path, self.learner, self._tokenizer, self.group)
        self.group.idle()

    def stop(self) -> None:
        """End the other ranks."""
        self.group.send("stop")


def follow(config: RunConfig, group: Group) -> None:
    """Carry out the orders of rank 0 until it says stop; the first is to load the models.

    Raises:
        RankLost: if another rank has ended.
        FairleadError: what `Learner.learn` and the others raise, the same as on rank 0.
    """
    set_threads(config.ppo)
    tokenizer = learner.initial_tokenizer(config)
    # Rank 0 may wait for the queue for long before it loads.
    group.next_order()
    group.idle(_LOADING)
    ours = learner.load(config, tokenizer, group=group)
    writing: slices.Writing | None = None
    while True:
        order, payload = group.next_order()
        if order == "stop":
            return
        if order == "export":
            _save_model(config, Path(), ours.models.policy, tokenizer, group)
        elif order == "export_average":
            _save_average(config, Path(), ours, tokenizer, group)
        elif order == "reset":
            group.idle(_LOADING)
            ours = learner.load(config, tokenizer, group=group)
        elif order == "copy":
            writing = slices.Writing(_path(payload), ours.models.state(), group)
        elif order == "commit" and writing is not None:
            writing.finish()
            writing = None
        else:
            _carry_out(config, ours, order, payload, group)


def _carry_out(config: RunConfig, ours: Learner, order: str, payload: bytes, group: Group) -> None:
    if order == "learn":
        rollouts, update = decode(payload, ours.models.device)
        ours.learn(rollouts, update=update)
        return
    if order == "check":
        ours.models.check_weights()
        return
    if order == "probe":
        probe(ours.models, published_as=config.weights.dtype)
        return
    if order == "save":
        slices.write(_path(payload), ours.models.state(), group)
    elif order == "publish":
        _write_shards(config, ours, _path(payload))
    elif order == "load":
        group.idle(_READING)
        store = CheckpointStore(config.folder.checkpoints)
        # Rank 0 has verified every file; this rank verifies those that it reads.
        _load(ours, store.load(WeightVersion.parse(json.loads(payload)["version"]), verify=False))
    else:
        raise ValueError(f"rank {group.rank} got the order {order!r}, which it does not know")


def _load(ours: Learner, checkpoint: Checkpoint) -> None:
    ours.load_state(checkpoint.state)
    ours.models.load_state(checkpoint.tensors)


def _write_shards(config: RunConfig, ours: Learner, folder: Path) -> list[Shard]:
    return publish.write_shards(ours.models, folder, dtype=getattr(torch, config.weights.dtype))


def _save_model(
    config: RunConfig,
    path: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    group: Group,
) -> None:
    publish.save_model(path, policy, tokenizer, merge=config.ppo.lora.merge, group=group)


def _save_average(
    config: RunConfig, path: Path, ours: Learner, tokenizer: PreTrainedTokenizerBase, group: Group
) -> None:
    assert ours.models.average is not None
    with ours.models.average.in_place():
        _save_model(config, path, ours.models.policy, tokenizer, group)


def _folder(folder: Path) -> bytes:
    return json.dumps({"folder": str(folder.absolute())}).encode()


def _path(payload: bytes) -> Path:
    return Path(json.loads(payload)["folder"])


_TENSORS = (
    "groups_B",
    "behaviour_N",
    "reference_N",
    "scores_B",
    "cut_off_B",
    "stale_B",
    "lengths_B",
    "mask_BT",
)
_TERM = "term."
"""Prefix of the scores of a term."""


def encode(rollouts: RolloutBatch, *, update: int) -> bytes:
    """Return a batch and the number of its update as a safetensors file."""
    sequences = rollouts.sequences
    tensors: dict[str, Tensor] = {
        "update": torch.tensor(update),
        "task_ids": torch.tensor(rollouts.task_ids),
        "token_ids": torch.tensor([token for sequence in sequences for token in sequence.token_ids]),
        "sequence_lengths": torch.tensor([len(sequence.token_ids) for sequence in sequences]),
        "prompt_lengths": torch.tensor([sequence.prompt_length for sequence in sequences]),
    }
    tensors |= {name: getattr(rollouts, name).cpu().contiguous() for name in _TENSORS}
    tensors |= {f"{_TERM}{name}": scores_B.cpu() for name, scores_B in rollouts.terms.items()}
    found: bytes = to_bytes(tensors)
    return found


def decode(payload: bytes, device: torch.device) -> tuple[RolloutBatch, int]:
    """Return what `encode` got, with tensors on a device."""
    tensors: dict[str, Tensor] = from_bytes(payload)
    parts = torch.split(tensors["token_ids"], tensors["sequence_lengths"].tolist())
    sequences = tuple(
        TokenSequence(tuple(part.tolist()), prompt_length)
        for part, prompt_length in zip(parts, tensors["prompt_lengths"].tolist(), strict=True)
    )
    rollouts = RolloutBatch(
        task_ids=tuple(tensors["task_ids"].tolist()),
        sequences=sequences,
        **{name: tensors[name].to(device) for name in _TENSORS},
        terms={
            name.removeprefix(_TERM): scores_B.to(device)
            for name, scores_B in tensors.items()
            if name.startswith(_TERM)
        },
    )
    return rollouts, int(tensors["update"])
