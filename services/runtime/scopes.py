"""What a caller needs for each RPC. A method that does not stand here needs `admin`."""

from __future__ import annotations

from fairlead.rpc.api_keys import Scope

_METHODS: dict[str, tuple[Scope | None, tuple[str, ...]]] = {
    "fairlead.v1.RewardService": ("score", ("Score", "ScoreStream", "GetRewardInfo")),
    "fairlead.v1.ReferenceService": ("score", ("LogProbs", "GetReferenceInfo")),
    "fairlead.v1.PolicyService": ("generate", ("Generate", "GenerateStream", "GetPolicyInfo")),
    "fairlead.v1.WeightService": (
        "weights",
        ("GetLatestManifest", "ListWeightVersions", "FindWeightSource", "FetchShard"),
    ),
    "inference.GRPCInferenceService": (
        "score",
        (
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelInfer",
            "ModelStreamInfer",
            "ModelStatistics",
            "RepositoryIndex",
        ),
    ),
}
_OPEN = frozenset(
    f"/inference.GRPCInferenceService/{method}" for method in ("ServerLive", "ServerReady", "ModelReady")
)
"""Health, as `grpc.health.v1` is, which does not come by here."""

_SCOPES: dict[str, Scope | None] = {
    f"/{service}/{method}": scope for service, (scope, methods) in _METHODS.items() for method in methods
} | dict.fromkeys(_OPEN)


def scope_of(method: str) -> Scope | None:
    """What a method needs, such as `/fairlead.v1.RewardService/Score`; None if anybody may call it."""
    return _SCOPES.get(method, "admin")
