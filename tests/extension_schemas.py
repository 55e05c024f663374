"""Schemas of the extensions of Kubernetes that components use, by hand from their documentation.

They allow only what the manifests have, so that a test needs no megabytes to notice a misspelt field.
published_schemas.py has those that the extensions publish, which are compared in slow tests.
"""

from __future__ import annotations

from typing import Any

_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}


def _exactly(required: str, optional: str = "", **types: object) -> dict[str, Any]:
    """Return a schema of an object with these fields and no others."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "properties": {name: types.get(name, {}) for name in names},
        "required": required.split(),
        "additionalProperties": False,
    }


_TRIGGER = _exactly(
    "type metadata authenticationRef",
    type={"const": "redis-streams"},
    metadata=_exactly(
        "address stream consumerGroup",
        "lagCount pendingEntriesCount enableTLS databaseIndex",
        **dict.fromkeys(
            (
                *("address", "stream", "consumerGroup", "lagCount", "pendingEntriesCount"),
                *("enableTLS", "databaseIndex"),
            ),
            _TEXT,
        ),
    ),
    authenticationRef=_exactly("name"),
)

_RULE = _exactly(
    "name action onJobFailureReasons",
    name={"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"const": "FailJobSet"},
    onJobFailureReasons={"type": "array", "items": {"const": "PodFailurePolicy"}},
)

_ROUTE_RULE = _exactly(
    "matches backendRefs timeouts",
    matches={
        "type": "array",
        "items": _exactly("path", path=_exactly("type value", type={"const": "PathPrefix"}, value=_TEXT)),
    },
    backendRefs={"type": "array", "items": _exactly("name port", name=_TEXT, port=_NUMBER)},
    timeouts=_exactly("request", request={"pattern": "^[0-9]+s$"}),
)

_ALERT = _exactly(
    "alert expr labels annotations",
    "for",
    **dict.fromkeys(("alert", "expr", "for"), _TEXT),
    labels=_exactly("severity", severity={"enum": ["info", "warning", "critical"]}),
    annotations=_exactly(
        "summary description runbook_url", summary=_TEXT, description=_TEXT, runbook_url=_TEXT
    ),
)
_RECORD = _exactly("record expr", record=_TEXT, expr=_TEXT)

SCHEMAS: dict[str, dict[str, Any]] = {
    # api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset; `template` is that of a Job.
    "JobSet": _exactly(
        "network failurePolicy replicatedJobs",
        network=_exactly("enableDNSHostnames", enableDNSHostnames={"type": "boolean"}),
        failurePolicy=_exactly(
            "maxRestarts restartStrategy rules",
            maxRestarts=_NUMBER,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={"type": "array", "items": _RULE},
        ),
        replicatedJobs={
            "type": "array",
            "items": _exactly("name replicas template", name=_TEXT, replicas=_NUMBER),
        },
    ),
    # pkg/apis/certmanager/v1/types_certificate.go of cert-manager/cert-manager.
    "Certificate": _exactly(
        "secretName dnsNames usages privateKey issuerRef",
        secretName=_TEXT,
        dnsNames={"type": "array", "items": _TEXT},
        usages={"type": "array", "items": {"enum": ["server auth", "client auth", "digital signature"]}},
        privateKey=_exactly(
            "algorithm size rotationPolicy",
            algorithm={"enum": ["ECDSA"]},
            size={"enum": [256, 384]},
            rotationPolicy={"enum": ["Always", "Never"]},
        ),
        issuerRef=_exactly("group kind name", kind={"enum": ["Issuer", "ClusterIssuer"]}, name=_TEXT),
    ),
    # api/leaderworkerset/v1/leaderworkerset_types.go of kubernetes-sigs/lws; the templates are those of pods.
    "LeaderWorkerSet": _exactly(
        "startupPolicy rolloutStrategy networkConfig leaderWorkerTemplate",
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=_exactly(
            "type rollingUpdateConfiguration",
            type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=_exactly(
                "maxUnavailable maxSurge", maxUnavailable=_NUMBER, maxSurge=_NUMBER
            ),
        ),
        networkConfig=_exactly("subdomainPolicy", subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        leaderWorkerTemplate=_exactly(
            "size restartPolicy leaderTemplate workerTemplate",
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
        ),
    ),
    # apis/v1/httproute_types.go of kubernetes-sigs/gateway-api.
    "HTTPRoute": _exactly(
        "parentRefs hostnames rules",
        parentRefs={"type": "array", "items": _exactly("name", "namespace sectionName port")},
        hostnames={"type": "array", "items": _TEXT},
        rules={"type": "array", "items": _ROUTE_RULE},
    ),
    "ScaledObject": _exactly(
        "scaleTargetRef triggers minReplicaCount maxReplicaCount fallback pollingInterval cooldownPeriod",
        "advanced",
        scaleTargetRef=_exactly("name"),
        triggers={"type": "array", "items": _TRIGGER},
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        pollingInterval=_NUMBER,
        cooldownPeriod=_NUMBER,
        fallback=_exactly("failureThreshold replicas", failureThreshold=_NUMBER, replicas=_NUMBER),
        advanced=_exactly(
            "horizontalPodAutoscalerConfig", horizontalPodAutoscalerConfig=_exactly("behavior")
        ),
    ),
    "TriggerAuthentication": _exactly(
        "secretTargetRef", secretTargetRef={"type": "array", "items": _exactly("parameter name key")}
    ),
    "PodMonitor": _exactly(
        "selector podMetricsEndpoints podTargetLabels",
        selector=_exactly("matchLabels"),
        podMetricsEndpoints={
            "type": "array",
            "items": _exactly(
                "port path interval relabelings",
                interval=_TEXT,
                relabelings={"type": "array", "items": _exactly("sourceLabels targetLabel")},
            ),
        },
    ),
    "PrometheusRule": _exactly(
        "groups",
        groups={
            "type": "array",
            "items": _exactly(
                "name interval rules",
                interval=_TEXT,
                rules={"type": "array", "items": {"oneOf": [_ALERT, _RECORD]}},
            ),
        },
    ),
}
"""Schema of the specification by kind."""
