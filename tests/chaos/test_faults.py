"""The schedule of faults: it depends only on the seed and contains every kind."""

from __future__ import annotations

from tests.chaos.faults import LINK_FAULTS, PROCESS_FAULTS, every_fault, schedule

PROCESSES = ["valkey", "trainer", "policy-0", "worker-0"]
LINKS = ["worker-0 to policy-0", "trainer to valkey"]


def test_schedule_depends_only_on_seed():
    first, again, other = (schedule(seed, count=40, processes=PROCESSES, links=LINKS) for seed in (1, 1, 2))
    assert first == again != other
    assert [fault.number for fault in first] == list(range(1, 41))


def test_every_kind_has_valid_targets_and_durations():
    faults = schedule(3, count=400, processes=PROCESSES, links=LINKS)
    assert {fault.kind for fault in faults} == {*PROCESS_FAULTS, *LINK_FAULTS, "kill_all", "forget"}
    for fault in faults:
        if fault.kind in LINK_FAULTS:
            assert fault.target in LINKS
        if fault.kind in PROCESS_FAULTS:
            assert fault.target in PROCESSES
        assert (fault.seconds > 0) == (fault.kind in ("pause", *LINK_FAULTS))


def test_every_process_is_killed_if_there_are_enough_faults():
    for seed in range(20):
        faults = schedule(seed, count=8, processes=PROCESSES, links=LINKS)
        assert {fault.target for fault in faults if fault.kind == "kill"} >= set(PROCESSES)


def test_every_fault_covers_all_processes_and_links():
    processes, links = [*PROCESSES, "policy-1"], [*LINKS, "policy-1 to weights-0", "peers to policy-1"]
    found = [(fault.kind, fault.target) for fault in every_fault(processes, links)]
    expected = {(kind, name) for kind in ("kill", "hang") for name in PROCESSES}
    expected |= {(kind, name) for kind in ("cut", "latency") for name in LINKS}
    assert set(found) == expected
    assert len(found) == len(expected)
