"""The schedule: the same for the same seed, and of every kind."""

from __future__ import annotations

from tests.chaos.faults import LINK_FAULTS, PROCESS_FAULTS, every, schedule

PROCESSES = ["valkey", "trainer", "policy-0", "worker-0"]
LINKS = ["worker-0 to policy-0", "trainer to valkey"]


def test_a_seed_is_a_schedule():
    first, again, other = (schedule(seed, count=40, processes=PROCESSES, links=LINKS) for seed in (1, 1, 2))
    assert first == again != other
    assert [fault.number for fault in first] == list(range(1, 41))


def test_every_kind_strikes_what_it_can_strike_for_as_long_as_it_lasts():
    faults = schedule(3, count=400, processes=PROCESSES, links=LINKS)
    assert {fault.kind for fault in faults} == {*PROCESS_FAULTS, *LINK_FAULTS, "kill_all", "forget"}
    for fault in faults:
        if fault.kind in LINK_FAULTS:
            assert fault.target in LINKS
        if fault.kind in PROCESS_FAULTS:
            assert fault.target in PROCESSES
        assert (fault.seconds > 0) == (fault.kind in ("pause", *LINK_FAULTS))


def test_every_process_is_killed_where_there_is_room():
    for seed in range(20):
        faults = schedule(seed, count=8, processes=PROCESSES, links=LINKS)
        assert {fault.target for fault in faults if fault.kind == "kill"} >= set(PROCESSES)


def test_every_process_and_every_link_has_its_faults():
    processes, links = [*PROCESSES, "policy-1"], [*LINKS, "policy-1 to weights-0", "peers to policy-1"]
    found = [(fault.kind, fault.target) for fault in every(processes, links)]
    expected = {(kind, name) for kind in ("kill", "hang") for name in PROCESSES}
    expected |= {(kind, name) for kind in ("cut", "latency") for name in LINKS}
    assert set(found) == expected
    assert len(found) == len(expected)
