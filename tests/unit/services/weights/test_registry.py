"""The registry of replicas: bounded fan-out, no cycles, leases, and failed sources."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, Overloaded
from fairlead.types import WeightVersion
from fairlead.types.weights import ORIGIN, FailedSource, SourceFailure, WeightReplica
from services.weights.registry import Registry

V1, V2 = WeightVersion(1, 1), WeightVersion(1, 2)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def named(name: str, *versions: WeightVersion) -> WeightReplica:
    return WeightReplica(name, f"{name}:1", versions)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(fan_out=1, lease_seconds=5, clock=clock)


def test_fan_out_of_one_is_a_chain(registry: Registry) -> None:
    assert [registry.find(named(name), V1) for name in "abcd"] == [ORIGIN, "a:1", "b:1", "c:1"]


def test_fan_out_of_two_is_a_tree() -> None:
    registry = Registry(fan_out=2, lease_seconds=5)
    found = [registry.find(named(name), V1) for name in "abcdefg"]
    assert found == [ORIGIN, ORIGIN, "a:1", "a:1", "b:1", "b:1", "c:1"]


def test_complete_replicas_are_preferred(registry: Registry) -> None:
    registry.report(named("a", V1))
    assert registry.find(named("b"), V1) == "a:1"
    assert registry.find(named("c"), V1) == ORIGIN
    assert registry.find(named("d"), V1) == "b:1"


def test_slot_is_free_once_the_version_is_held(registry: Registry) -> None:
    registry.find(named("a"), V1)
    registry.report(named("a", V1))
    assert registry.find(named("b"), V2) == ORIGIN


def test_replica_without_relay_is_not_a_source(registry: Registry) -> None:
    assert registry.find(WeightReplica("quiet"), V1) == ORIGIN
    with pytest.raises(Overloaded, match="all sources of weights 1-1 are in use"):
        registry.find(named("b"), V1)


def test_silent_replica_loses_its_slot(registry: Registry, clock: Clock) -> None:
    registry.find(WeightReplica("quiet"), V1)
    clock.now += 4
    registry.report(WeightReplica("quiet"))
    clock.now += 4
    with pytest.raises(Overloaded):
        registry.find(named("b"), V1)
    clock.now += 2
    assert registry.find(named("b"), V1) == ORIGIN


def test_restart_at_same_address_replaces_replica(registry: Registry) -> None:
    registry.report(WeightReplica("old", "a:1", (V1,)))
    registry.report(WeightReplica("new", "a:1"))
    assert registry.find(named("b"), V1) == ORIGIN


def test_replica_is_not_assigned_its_own_dependant(registry: Registry) -> None:
    registry.report(named("d", V1))
    assert registry.find(named("a"), V1) == "d:1"
    assert registry.find(named("b"), V1) == ORIGIN
    assert registry.find(named("e"), V1) == "a:1"
    assert registry.find(WeightReplica("quiet"), V1) == "b:1"
    # The only free slots are at e, which fetches from a.
    with pytest.raises(Overloaded):
        registry.find(named("a"), V1, [FailedSource("d:1", SourceFailure.BROKEN)])
    registry.report(WeightReplica("quiet", versions=(V1,)))
    assert registry.find(named("a"), V1) == "b:1"


def test_broken_source_is_avoided_for_a_while(registry: Registry, clock: Clock) -> None:
    registry.report(named("a", V1))
    assert registry.find(named("b"), V1) == "a:1"
    broken = FailedSource("a:1", SourceFailure.BROKEN)
    assert registry.find(named("b"), V1, [broken]) == ORIGIN
    assert registry.find(named("c"), V1) == "a:1"
    registry.report(named("c", V1))
    clock.now += 3
    for name in "abc":
        registry.report(named(name, *([V1] if name != "b" else [])))
    clock.now += 3
    registry.report(named("a", V1))
    clock.now += 4.5
    registry.report(named("a", V1))
    assert registry.find(named("b"), V1) == "a:1"


def test_corrupt_source_is_not_assigned_for_that_version(registry: Registry) -> None:
    registry.report(named("a", V1, V2))
    corrupt = FailedSource("a:1", SourceFailure.CORRUPT)
    assert registry.find(named("b"), V1, [corrupt]) == ORIGIN
    assert registry.find(named("c"), V1) == "b:1"
    assert registry.find(named("d"), V2) == "a:1"


def test_origin_is_never_avoided(registry: Registry) -> None:
    assert registry.find(named("a"), V1, [FailedSource(ORIGIN, SourceFailure.BROKEN)]) == ORIGIN


def test_replica_without_id_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"replica\.replica_id"):
        registry.report(WeightReplica(""))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), fan_out=st.integers(1, 3))
def test_fan_out_and_acyclic_chains_under_any_events(data: st.DataObject, fan_out: int) -> None:
    """Against a model of the assignments: joins, failures, deaths and completions in any order."""
    clock = Clock()
    registry = Registry(fan_out=fan_out, lease_seconds=5, clock=clock)
    assigned: dict[str, str] = {}
    reported: dict[str, float] = {}
    holds: set[str] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from("abcdef"))
        match data.draw(st.sampled_from(["find", "report", "hold", "wait"])):
            case "find" if name not in holds:
                failed = data.draw(st.sampled_from([None, *SourceFailure]))
                source = [FailedSource(assigned[name], failed)] if failed and name in assigned else []
                assigned.pop(name, None)
                reported[name] = clock.now
                with contextlib.suppress(Overloaded):
                    assigned[name] = registry.find(named(name), V1, source)
            case "report":
                registry.report(named(name, *([V1] if name in holds else [])))
                reported[name] = clock.now
            case "hold" if name in assigned:
                holds.add(name)
                del assigned[name]
                registry.report(named(name, V1))
                reported[name] = clock.now
            case "wait":
                clock.now += data.draw(st.floats(0, 4))
        for gone in [name for name, at in reported.items() if at + 5 < clock.now]:
            reported.pop(gone)
            assigned.pop(gone, None)
            holds.discard(gone)
        sources = list(assigned.values())
        assert all(sources.count(source) <= fan_out for source in sources)
        for name in assigned:
            chain = [name]
            while chain[-1] in assigned and assigned[chain[-1]] != ORIGIN:
                chain.append(assigned[chain[-1]].partition(":")[0])
                assert len(chain) == len(set(chain)), chain
