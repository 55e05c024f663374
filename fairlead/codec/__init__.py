"""protobuf ↔ types: the only place where messages are created and read field by field.

Decoding checks the structure (which oneof is set, known enum values, schema version); the services check
values against the limits of their models.
"""

from fairlead.codec.rollouts import (
    SCHEMA_VERSION,
    decode_outcome,
    decode_task,
    encode_outcome,
    encode_task,
)
from fairlead.codec.scoring import (
    priority_from_pb,
    priority_to_pb,
    reward_info_from_pb,
    reward_info_to_pb,
    score_item_to_pb,
    score_items_from_pb,
    scores_from_pb,
    scores_to_pb,
    served_from_pb,
    served_to_pb,
)
from fairlead.codec.tokens import (
    completion_from_pb,
    completion_to_pb,
    messages_from_pb,
    messages_to_pb,
    model_info_from_pb,
    model_info_to_pb,
    sampling_from_pb,
    sampling_to_pb,
    version_from_pb,
    version_to_pb,
)
from fairlead.codec.weights import (
    direct_offer_from_pb,
    direct_offer_to_pb,
    failed_source_to_pb,
    failed_sources_from_pb,
    weight_replica_from_pb,
    weight_replica_to_pb,
)

__all__ = [
    "SCHEMA_VERSION",
    "completion_from_pb",
    "completion_to_pb",
    "decode_outcome",
    "decode_task",
    "direct_offer_from_pb",
    "direct_offer_to_pb",
    "encode_outcome",
    "encode_task",
    "failed_source_to_pb",
    "failed_sources_from_pb",
    "messages_from_pb",
    "messages_to_pb",
    "model_info_from_pb",
    "model_info_to_pb",
    "priority_from_pb",
    "priority_to_pb",
    "reward_info_from_pb",
    "reward_info_to_pb",
    "sampling_from_pb",
    "sampling_to_pb",
    "score_item_to_pb",
    "score_items_from_pb",
    "scores_from_pb",
    "scores_to_pb",
    "served_from_pb",
    "served_to_pb",
    "version_from_pb",
    "version_to_pb",
    "weight_replica_from_pb",
    "weight_replica_to_pb",
]
