"""Who fetches from whom: bounded fan-out, no circles, leases, and sources that failed."""

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


def test_with_one_place_each_they_stand_in_a_chain(registry: Registry) -> None:
    assert [registry.find(named(name), V1) for name in "abcd"] == [ORIGIN, "a:1", "b:1", "c:1"]


def test_with_two_places_each_they_stand_in_a_tree() -> None:
    registry = Registry(fan_out=2, lease_seconds=5)
    found = [registry.find(named(name), V1) for name in "abcdefg"]
    assert found == [ORIGIN, ORIGIN, "a:1", "a:1", "b:1", "b:1", "c:1"]


def test_who_holds_all_of_it_comes_first(registry: Registry) -> None:
    registry.report(named("a", V1))
    assert registry.find(named("b"), V1) == "a:1"
    assert registry.find(named("c"), V1) == ORIGIN
    assert registry.find(named("d"), V1) == "b:1"


def test_a_place_is_free_again_when_the_version_is_held(registry: Registry) -> None:
    registry.find(named("a"), V1)
    registry.report(named("a", V1))
    assert registry.find(named("b"), V2) == ORIGIN


def test_who_does_not_relay_is_no_source_and_the_rest_waits(registry: Registry) -> None:
    assert registry.find(WeightReplica("quiet"), V1) == ORIGIN
    with pytest.raises(Overloaded, match="all sources of weights 1-1 are in use"):
        registry.find(named("b"), V1)


def test_a_replica_that_is_not_heard_of_loses_its_place(registry: Registry, clock: Clock) -> None:
    registry.find(WeightReplica("quiet"), V1)
    clock.now += 4
    registry.report(WeightReplica("quiet"))
    clock.now += 4
    with pytest.raises(Overloaded):
        registry.find(named("b"), V1)
    clock.now += 2
    assert registry.find(named("b"), V1) == ORIGIN


def test_a_restart_at_the_same_address_replaces_what_was_there(registry: Registry) -> None:
    registry.report(WeightReplica("old", "a:1", (V1,)))
    registry.report(WeightReplica("new", "a:1"))
    assert registry.find(named("b"), V1) == ORIGIN


def test_nobody_is_sent_to_who_depends_on_him(registry: Registry) -> None:
    registry.report(named("d", V1))
    assert registry.find(named("a"), V1) == "d:1"
    assert registry.find(named("b"), V1) == ORIGIN
    assert registry.find(named("e"), V1) == "a:1"
    assert registry.find(WeightReplica("quiet"), V1) == "b:1"
    # The only free places are at e, which has its bytes from a.
    with pytest.raises(Overloaded):
        registry.find(named("a"), V1, [FailedSource("d:1", SourceFailure.BROKEN)])
    registry.report(WeightReplica("quiet", versions=(V1,)))
    assert registry.find(named("a"), V1) == "b:1"


def test_a_broken_source_is_not_given_again_for_a_while(registry: Registry, clock: Clock) -> None:
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


def test_who_lied_about_a_version_is_believed_by_nobody(registry: Registry) -> None:
    registry.report(named("a", V1, V2))
    lied = FailedSource("a:1", SourceFailure.CORRUPT)
    assert registry.find(named("b"), V1, [lied]) == ORIGIN
    assert registry.find(named("c"), V1) == "b:1"
    assert registry.find(named("d"), V2) == "a:1"


def test_the_origin_is_always_asked_again(registry: Registry) -> None:
    assert registry.find(named("a"), V1, [FailedSource(ORIGIN, SourceFailure.BROKEN)]) == ORIGIN


def test_a_replica_without_a_name_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=r"replica\.replica_id"):
        registry.report(WeightReplica(""))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), fan_out=st.integers(1, 3))
def test_whatever_happens_the_fan_out_is_kept_and_every_chain_ends_at_bytes(
    data: st.DataObject, fan_out: int
) -> None:
    """Against a model that knows who was told what: joins, failures, deaths and completions in any order."""
    clock = Clock()
    registry = Registry(fan_out=fan_out, lease_seconds=5, clock=clock)
    told: dict[str, str] = {}
    heard: dict[str, float] = {}
    holds: set[str] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from("abcdef"))
        match data.draw(st.sampled_from(["find", "hear", "hold", "wait"])):
            case "find" if name not in holds:
                failed = data.draw(st.sampled_from([None, *SourceFailure]))
                source = [FailedSource(told[name], failed)] if failed and name in told else []
                told.pop(name, None)
                heard[name] = clock.now
                with contextlib.suppress(Overloaded):
                    told[name] = registry.find(named(name), V1, source)
            case "hear":
                registry.report(named(name, *([V1] if name in holds else [])))
                heard[name] = clock.now
            case "hold" if name in told:
                holds.add(name)
                del told[name]
                registry.report(named(name, V1))
                heard[name] = clock.now
            case "wait":
                clock.now += data.draw(st.floats(0, 4))
        for gone in [name for name, at in heard.items() if at + 5 < clock.now]:
            heard.pop(gone)
            told.pop(gone, None)
            holds.discard(gone)
        places = list(told.values())
        assert all(places.count(source) <= fan_out for source in places)
        for name in told:
            chain = [name]
            while chain[-1] in told and told[chain[-1]] != ORIGIN:
                chain.append(told[chain[-1]].partition(":")[0])
                assert len(chain) == len(set(chain)), chain
