"""`logs --follow` against a stand-in for a cluster's API: several pods, restarts, a cut connection."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fairlead.cli import k8s_look
from fairlead.errors import ClusterRefused
from fairlead.k8s import follow as following
from fairlead.k8s.cluster import Cluster
from tests.cluster_controllers import READY
from tests.cluster_stand_in import add_process, named
from tests.waiting import eventually


def line(second: int, text: str, fraction: int = 0) -> str:
    return f"2026-01-01T00:00:{second:02}.{fraction:09}Z {text}"


class Following:
    """A call of `follow` in a thread."""

    def __init__(self, process: str, lines: int = 10) -> None:
        self.shown: list[tuple[str, str]] = []
        self.reports: list[str] = []
        self.error: BaseException | None = None
        self._process, self._lines = process, lines
        self.thread = threading.Thread(target=self._call, daemon=True)
        self.thread.start()

    def _call(self) -> None:
        cluster = Cluster.connect("fairlead", run="one", kubeconfig=None, context=None, timeout_seconds=10)
        try:
            following.follow(
                cluster,
                self._process,
                lines=self._lines,
                poll_seconds=0.1,
                write=lambda pod, text: self.shown.append((pod, text)),
                report=self.reports.append,
            )
        except ClusterRefused as error:
            self.error = error

    def of(self, pod: str) -> list[str]:
        return [text for name, text in list(self.shown) if name == pod]

    def has(self, pod: str, *texts: str) -> Callable[[], bool]:
        return lambda: self.of(pod) == list(texts)

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(following, "_PAUSE", following.Backoff(first_seconds=0.02, longest_seconds=0.1))


def test_new_lines_of_several_pods_are_written_once_through_a_cut_and_restarts(cluster):
    first, second = add_process(cluster, "deployments", "policy", 2)
    # Two lines with the same time, in the second at which the log is resumed.
    cluster.written[first] = [line(1, "old"), line(2, "a"), line(2, "b"), line(2, "c", 5)]
    cluster.written[second] = [line(1, "other")]
    found = Following("policy", lines=3)
    eventually(found.has(first, "a", "b", "c"))
    eventually(found.has(second, "other"))
    cluster.cuts.append(first)
    eventually(lambda: not cluster.cuts)
    cluster.written[first] += [line(2, "d", 5), line(3, "e")]
    eventually(found.has(first, "a", "b", "c", "d", "e"))
    # The container restarts while the connection is cut: its last words are in the log of the previous one.
    cluster.objects["pods", "fairlead", first]["script"] = [READY | {"restartCount": 1}]
    pod = cluster.objects["pods", "fairlead", first]
    eventually(lambda: pod["status"]["containerStatuses"][0].get("restartCount") == 1)
    cluster.previous[first] = [*cluster.written[first], line(4, "last words")]
    cluster.written[first] = []
    eventually(found.has(first, "a", "b", "c", "d", "e", "last words"))
    cluster.written[first].append(line(6, "again"))
    eventually(found.has(first, "a", "b", "c", "d", "e", "last words", "again"))
    # A pod is replaced.
    cluster.objects.pop(("pods", "fairlead", second))
    cluster.ended.add(second)
    cluster.controllers.applied(("deployments", "fairlead", "one-policy"))
    (third,) = set(named(cluster, "pods")) - {first}
    cluster.written.setdefault(third, []).append(line(7, "new pod"))
    eventually(found.has(third, "new pod"))
    assert found.thread.is_alive()
    del cluster.objects["deployments", "fairlead", "one-policy"]
    for pod in (first, third):
        cluster.objects.pop(("pods", "fairlead", pod))
        cluster.ended.add(pod)
    found.join()
    assert found.of(second) == ["other"]
    assert "half a li" not in " ".join(text for _, text in found.shown)


def test_the_end_of_a_job_ends_it_and_an_unavailable_api_does_not(cluster, fairlead, monkeypatch):
    monkeypatch.setattr(k8s_look, "_POLL_SECONDS", 0.1)
    (pod,) = add_process(cluster, "jobs", "trainer")
    cluster.written[pod] = [line(1, "update 1 of 2"), line(2, "update 2 of 2")]
    cluster.faults += [("GET .*/pods", 503), (f"GET .*/pods/{pod}/log", 500), (f"GET .*/pods/{pod}/log", 500)]
    cluster.faults[0] = ("GET .*/statefulsets", 503)
    cluster.ended.add(pod)
    cluster.controllers.scripts["one-trainer"] = []
    done = READY | {"state": {"terminated": {"exitCode": 0}}, "ready": False}
    cluster.objects["pods", "fairlead", pod]["script"] = [READY, READY, READY, done]
    shown = fairlead("logs", "trainer", "--run", "one", "--follow")
    assert shown.stdout == f"{pod}: update 1 of 2\n{pod}: update 2 of 2\n"
    assert "is unavailable (list StatefulSet" in shown.stderr
    assert f"{pod}: the cluster at" in shown.stderr


def test_a_missing_right_ends_it_and_names_the_verb(cluster):
    add_process(cluster, "deployments", "policy")
    cluster.rules = [
        {
            "apiGroups": ["", "apps", "batch"],
            "resources": ["pods", "deployments", "statefulsets", "jobs"],
            "verbs": ["get", "list"],
        }
    ]
    found = Following("policy")
    found.join()
    assert 'cannot get resource "pods/log"' in str(found.error)


def test_follow_and_previous_are_refused_together(cluster, fairlead):
    assert "--follow: got it with --previous" in fairlead("logs", "policy", "-f", "--previous", code=2).stderr
