"""components/network-policies: the allowed connections, evaluated as a network plugin would."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fairlead.k8s.manifests import Manifest
from tests.rendered import container, needs_kubectl, of_kind, rendered, templates

pytestmark = needs_kubectl
RUN = "fairlead"
PORTS = (443, 5001, 5002, 5003, 5004, 5005, 5432, 6379, 8080, 8400, 9090, 29500)
SPACES = {
    "callers": {"fairlead-gateway-client": "true"},
    "people": {"fairlead-feedback-client": "true"},
    "database": {"fairlead-feedback-store": "true"},
}
"""Labels of namespaces in addition to their names."""
EDGES = {
    ("rollout-worker", "policy", 5001),
    ("rollout-worker", "reward", 5002),
    ("rollout-worker", "reference", 5003),
    ("rollout-worker", "redis", 6379),
    ("callers", "gateway", 8080),
    ("gateway", "policy", 5001),
    ("gateway", "reward", 5002),
    ("gateway", "feedback", 8400),
    ("people", "feedback", 8400),
    ("trainer", "redis", 6379),
    *(("policy", "weights", port) for port in (5004, 5005)),
    *(("policy", "policy", port) for port in (5001, 5005)),
    *(("trainer", "trainer", port) for port in PORTS),
    ("keda", "redis", 6379),
    *(
        ("monitoring", name, 9090)
        for name in (
            "policy",
            "reward",
            "reference",
            "rollout-worker",
            "gateway",
            "trainer",
            "weights",
            "feedback",
        )
    ),
}
"""Caller, callee and port; `keda`, `monitoring`, `callers` and `people` stand for any pod of these
namespaces.
"""


class Network:
    """Evaluates NetworkPolicies: a pod that none selects may do everything, others what one policy allows."""

    def __init__(self, objects: tuple[Manifest, ...]) -> None:
        self.policies = [one["spec"] for one in of_kind(objects, "NetworkPolicy").values()]
        self.pods = {
            name: (RUN, template["metadata"]["labels"]) for name, template in templates(objects).items()
        }
        self.ports = {
            name: {port["name"]: port["containerPort"] for port in container(template).get("ports", ())}
            for name, template in templates(objects).items()
        }
        self.pods |= {
            name: (name, {"app": "anything"})
            for name in ("keda", "monitoring", "kube-system", "other", *SPACES)
        }

    def allows(self, source: str, target: str, port: int) -> bool:
        return self._side("Egress", source, target, port) and self._side("Ingress", target, source, port)

    def _side(self, kind: str, pod: str, other: str, port: int) -> bool:
        """Return whether a pod may send (Egress) or receive (Ingress)."""
        namespace, labels = self.pods[pod]
        mine = [
            one
            for one in self.policies
            if namespace == RUN
            and kind in one["policyTypes"]
            and one["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        target = other if kind == "Egress" else pod
        rules = [rule for one in mine for rule in one.get(kind.lower(), ())]
        peers = "to" if kind == "Egress" else "from"
        return not mine or any(
            any(self._is(peer, other) for peer in rule[peers]) and self._at(rule.get("ports"), target, port)
            for rule in rules
        )

    def _is(self, peer: dict[str, Any], pod: str) -> bool:
        namespace, labels = self.pods[pod]
        space = {"kubernetes.io/metadata.name": namespace, **SPACES.get(namespace, {})}
        if "namespaceSelector" in peer:
            assert "podSelector" not in peer
            return peer["namespaceSelector"].get("matchLabels", {}).items() <= space.items()
        return namespace == RUN and peer["podSelector"]["matchLabels"].items() <= labels.items()

    def _at(self, ports: list[dict[str, Any]] | None, target: str, port: int) -> bool:
        """Return the port number; a named port is looked up in the target's container."""
        named = self.ports.get(target, {})
        return ports is None or any(named.get(one["port"], one["port"]) == port for one in ports)


@pytest.fixture
def network() -> Network:
    return Network(rendered("everything"))


def test_only_connections_of_the_data_flow_are_allowed(network):
    open_edges = {
        (source, target, port)
        for source, target, port in itertools.product(network.pods, network.pods, PORTS)
        if network.pods[target][0] == RUN and network.allows(source, target, port)
    }
    assert open_edges == EDGES


def test_run_reaches_only_dns_outside_its_namespace(network):
    mine = [name for name, (namespace, _) in network.pods.items() if namespace == RUN]
    assert all(network.allows(name, "kube-system", 53) for name in mine)
    assert not [name for name in mine if network.allows(name, "other", 443)]
    assert [name for name in mine if network.allows(name, "database", 5432)] == ["feedback"]
    sqlite = Network(rendered("kind, feedback"))
    assert not sqlite.allows("feedback", "database", 5432), "its store is a file"


def test_nodes_of_a_policy_reach_one_another_at_every_port():
    nodes = Network(rendered("large, policy nodes"))
    between = [("policy", "policy-node"), ("policy-node", "policy"), ("policy-node", "policy-node")]
    assert all(nodes.allows(*edge, port) for edge in between for port in PORTS)
    callers = {
        name for name in nodes.pods if name != "monitoring" and nodes.allows(name, "policy-node", 5001)
    }
    assert callers == {"policy", "policy-node"}
    assert not nodes.allows("policy-node", "redis", 6379)
