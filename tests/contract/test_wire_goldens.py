"""Payloads as this version writes them: every later version must be able to read what is in a queue."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError

from fairlead import codec
from fairlead.errors import CorruptData, SchemaTooNew
from fairlead.types import (
    Completion,
    DeadLetter,
    FinishReason,
    Outcome,
    PromptTask,
    Rollout,
    SamplingParams,
    VersionSpan,
    WeightVersion,
)
from fairlead.v1 import (
    policy_service_pb2,
    reference_service_pb2,
    reward_admin_service_pb2,
    reward_service_pb2,
    rollout_pb2,
)

TASK = PromptTask(
    task_id=300,
    prompt_token_ids=(1, 200, 70_000),
    prompt_text="my lamp – broken",
    sampling=SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        max_new_tokens=40,
        stop_token_ids=(2,),
        stop_strings=("\n",),
        seed=-1,
    ),
    min_version=WeightVersion(2, 17),
)
GROUP_TASK = replace(TASK, num_samples=2)
ROLLOUT = Rollout(
    completion=Completion(
        token_ids=(9, 2),
        logprobs=(-0.5, -2.25),
        finish_reason=FinishReason.STOP,
        version_spans=(VersionSpan(WeightVersion(2, 17), 0, 1), VersionSpan(WeightVersion(2, 18), 1, 2)),
        text="sorry",
        mixed_cache=True,
    ),
    score=1.5,
    reward_version="d02a991e86a3",
    reference_logprobs=(-0.75, -2.0),
    scored_as_text=True,
    generate_seconds=0.25,
    score_seconds=0.125,
)
# Without a checksum, as Fairlead first wrote them; with it, these bytes follow a field of five bytes.
GOLDEN_TASK = (
    "080110ac021a0601c801f0a20422126d79206c616d7020e280932062726f6b656e2a2709666666666666e63f"
    "11cdccccccccccec3f180520282a010232010a38ffffffffffffffffff01320408021011"
)
GOLDEN_OUTCOME = (
    "08011250080110ac021a0601c801f0a20422126d79206c616d7020e280932062726f6b656e2a270966666666"
    "6666e63f11cdccccccccccec3f180520282a010232010a38ffffffffffffffffff013204080210111a620a2f"
    "0a0209021208000000bf000010c0180122080a04080210111801220a0a0408021012100118022a05736f7272"
    "793001150000c03f1a0c6430326139393165383661332208000040bf000000c0280131000000000000d03f39"
    "000000000000c03f2a08776f726b65722d3030033801"
)
GOLDEN_DEAD_LETTER = (
    "08011250080110ac021a0601c801f0a20422126d79206c616d7020e280932062726f6b656e2a270966666666"
    "6666e63f11cdccccccccccec3f180520282a010232010a38ffffffffffffffffff0132040802101122240a0f"
    "70726f6d70745f746f6f5f6c6f6e67121131333020746f6b656e73206f66203132382a08776f726b65722d30"
    "30033801"
)

# Tasks with several samples, since schema version 2.
GOLDEN_GROUP_TASK = (
    "080210ac021a0601c801f0a20422126d79206c616d7020e280932062726f6b656e2a2709666666666666e63f"
    "11cdccccccccccec3f180520282a010232010a38ffffffffffffffffff013204080210114002"
)
GOLDEN_GROUP = (
    "08021252080210ac021a0601c801f0a20422126d79206c616d7020e280932062726f6b656e2a270966666666"
    "6666e63f11cdccccccccccec3f180520282a010232010a38ffffffffffffffffff0132040802101140022a08"
    "776f726b65722d303003380142c8010a620a2f0a0209021208000000bf000010c0180122080a040802101118"
    "01220a0a0408021012100118022a05736f7272793001150000c03f1a0c643032613939316538366133220800"
    "0040bf000000c0280131000000000000d03f39000000000000c03f0a620a2f0a0209021208000000bf000010"
    "c0180122080a04080210111801220a0a0408021012100118022a05736f727279300115000080bf1a0c643032"
    "6139393165383661332208000040bf000000c0280131000000000000d03f39000000000000c03f"
)


def with_checksum(golden: str) -> str:
    """Return the tag of field 15, CRC-32 by its definition (ISO-HDLC, bit by bit), and the message."""
    crc = 0xFFFFFFFF
    for byte in bytes.fromhex(golden):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return "7d" + (crc ^ 0xFFFFFFFF).to_bytes(4, "little").hex() + golden


def test_task_of_this_version_stays_readable():
    assert codec.encode_task(TASK).hex() == with_checksum(GOLDEN_TASK)
    for golden in (GOLDEN_TASK, with_checksum(GOLDEN_TASK)):
        assert codec.decode_task(bytes.fromhex(golden)) == TASK
    assert codec.encode_task(GROUP_TASK).hex() == with_checksum(GOLDEN_GROUP_TASK)
    assert codec.decode_task(bytes.fromhex(with_checksum(GOLDEN_GROUP_TASK))) == GROUP_TASK


def test_outcomes_of_this_version_stay_readable():
    for golden, task, result in (
        (GOLDEN_OUTCOME, TASK, (ROLLOUT,)),
        (GOLDEN_GROUP, GROUP_TASK, (ROLLOUT, replace(ROLLOUT, score=-1.0))),
        (GOLDEN_DEAD_LETTER, TASK, DeadLetter("prompt_too_long", "130 tokens of 128")),
    ):
        outcome = Outcome(task, result, worker="worker-0", deliveries=3, failures=1)
        assert codec.encode_outcome(outcome).hex() == with_checksum(golden)
        if not isinstance(result, DeadLetter):
            termed = replace(result[0], terms=(("good", 0.5), ("cost", -2.0)))
            outcome_of_terms = replace(outcome, result=(termed, *result[1:]))
            assert codec.decode_outcome(codec.encode_outcome(outcome_of_terms)) == outcome_of_terms
        for written in (golden, with_checksum(golden)):
            assert codec.decode_outcome(bytes.fromhex(written)) == outcome


def test_reader_without_checksum_support_ignores_it():
    """Workers of two releases share a queue: the message with a checksum parses as before."""
    message = rollout_pb2.PromptTask.FromString(codec.encode_task(TASK))
    message.ClearField("checksum")
    assert message.SerializeToString().hex() == GOLDEN_TASK


def test_every_flipped_bit_and_every_cut_is_detected():
    """Many of them parse as protobuf; without the checksum a task would silently become another."""
    payload = codec.encode_task(TASK)
    parsed = 0
    for position in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptData):
            codec.decode_task(bytes(damaged))
        with suppress(DecodeError):
            rollout_pb2.PromptTask.FromString(bytes(damaged))
            parsed += 1
    assert parsed > 4 * len(payload)
    for length in range(len(payload)):
        with pytest.raises(CorruptData):
            codec.decode_task(payload[:length])


def test_newer_schema_is_refused_with_and_without_checksum():
    newer = rollout_pb2.Outcome(schema_version=codec.SCHEMA_VERSION + 1).SerializeToString()
    for payload in (newer, bytes.fromhex(with_checksum(newer.hex()))):
        with pytest.raises(SchemaTooNew, match="outcome has schema version 3; this fairlead reads up to 2"):
            codec.decode_outcome(payload)


def test_service_and_method_names_are_unchanged():
    found = {
        service.full_name: [(method.name, method.server_streaming) for method in service.methods]
        for module in (
            policy_service_pb2,
            reference_service_pb2,
            reward_service_pb2,
            reward_admin_service_pb2,
        )
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert found == {
        "fairlead.v1.PolicyService": [
            ("Generate", False),
            ("GenerateBatch", True),
            ("GenerateStream", True),
            ("GetPolicyInfo", False),
        ],
        "fairlead.v1.ReferenceService": [("LogProbs", False), ("GetReferenceInfo", False)],
        "fairlead.v1.RewardService": [
            ("Score", False),
            ("ScoreStream", True),
            ("GetRewardInfo", False),
        ],
        "fairlead.v1.RewardAdminService": [
            ("ListRewardModels", False),
            ("LoadRewardModel", False),
            ("SetCanaryShare", False),
            ("PromoteCanary", False),
            ("AbandonCanary", False),
        ],
    }
