"""The probe of a version: what the trainer's weights compute, and its way through the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairlead.errors import CorruptWeights
from fairlead.nn.logprobs import token_logprobs
from fairlead.transports.weights import manifest
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.ppo.ppo_batches import SECTION
from trainer.ppo import actor_critic, publish
from trainer.ppo.probe import probe

VERSION = WeightVersion(1, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return actor_critic.load(str(tiny_causal_lm(tmp_path_factory.mktemp("lm"))), SECTION)


def test_probe_is_what_the_policy_computes(models):
    found = probe(models, published_as="float32")
    ids_T = torch.tensor(found.token_ids)
    with torch.no_grad():
        logits_TV = models.policy(ids_T[None]).logits[0]
    expected_T = token_logprobs(logits_TV[:-1], ids_T[1:], temperature=1.0)
    assert found.logprobs == pytest.approx(expected_T.tolist(), abs=1e-5)
    assert (len(found.token_ids), found.dtype) == (32, "float32")
    assert probe(models, published_as="bfloat16").dtype == "bfloat16"


def test_probe_is_in_the_manifest_of_a_version(models, tmp_path: Path):
    store = FilesystemWeightStore(tmp_path)
    wanted = probe(models, published_as="float32")
    publish.publish(
        store,
        VERSION,
        write=lambda folder: publish.write_shards(models, folder),
        parent=None,
        lineage=[Ancestor(1, 0)],
        keep=1,
        probe=wanted,
    )
    found = store.latest()
    assert found is not None
    assert found.probe == wanted
    without = replace(found, probe=None)
    assert manifest.decode(manifest.encode(without), VERSION, where=tmp_path).probe is None
    short = replace(found, probe=replace(wanted, logprobs=wanted.logprobs[1:]))
    with pytest.raises(CorruptWeights, match="a probe of 32 tokens with 30 log-probs"):
        manifest.decode(manifest.encode(short), VERSION, where=tmp_path)
