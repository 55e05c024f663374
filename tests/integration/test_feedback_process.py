"""`python -m services.feedback` under SIGKILL: nothing that was acknowledged is lost or doubled."""

from __future__ import annotations

import json
import random
import secrets
import signal
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairlead import judgments
from fairlead.config import load
from fairlead.feedback_client import FeedbackClient
from fairlead.judgments import Judgment
from fairlead.rounds.embedded import embedded
from tests.feedback_world import schema_of
from tests.service_process import Process, Starter, free_address


@dataclass
class Labelers:
    """Programs that rank until there is nothing left, and remember what was acknowledged."""

    address: str
    wanted: int
    said: dict[str, Judgment] = field(default_factory=dict)
    repeated: int = 0
    errors: list[Exception] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def finished(self) -> bool:
        return len(self.said) >= self.wanted or bool(self.errors)

    def run(self, name: str) -> None:
        try:
            with FeedbackClient(self.address, api_key="", timeout_seconds=90) as client:
                client.sign_in(handle=name)
                while not self.finished:
                    self._label(name, client)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.errors.append(error)

    def _label(self, name: str, client: FeedbackClient) -> None:
        task = client.next()
        if task is None:
            time.sleep(0.05)
            return
        prompt = task.prompt[0].content
        rng = random.Random(f"{name} {prompt}")
        # By the text and some noise, with a tie now and then.
        ranks = {key: int(text[-1]) + rng.randrange(3) for key, text in task.answers.items()}
        dense = {rank: place for place, rank in enumerate(sorted(set(ranks.values())), start=1)}
        receipt = client.rank(task.assignment, {key: dense[rank] for key, rank in ranks.items()})
        with self.lock:
            assert receipt.id not in self.said
            self.repeated += receipt.repeated
            self.said[receipt.id] = Judgment(
                task=prompt, labeler=name, ranks={task.answers[key]: rank for key, rank in ranks.items()}
            )


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a store that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    server, _ = request.getfixturevalue("postgres")
    return schema_of(server, f"s{secrets.token_hex(6)}")


def _start(start: Starter, store: str, address: str, tasks: Path) -> Process:
    settings: dict[str, object] = {
        "feedback.tasks": json.dumps([str(tasks)]),
        "feedback.bind": address,
        "feedback.store": store,
        "feedback.project.overlap": 3,
        "feedback.project.shared_share": 1,
    }
    process = start("feedback", None, **settings)
    process.address = address
    process.wait_for("/readyz")
    return process


@pytest.mark.parametrize(
    ("store", "tasks", "labelers", "kills"),
    [
        ("sqlite", 40, 4, 1),
        pytest.param("sqlite", 667, 20, 10, marks=pytest.mark.slow),
        pytest.param("postgres", 667, 20, 10, marks=pytest.mark.slow),
    ],
    indirect=["store"],
)
@pytest.mark.timeout(900)
def test_no_judgment_is_lost_or_doubled_when_the_service_is_killed(
    start: Starter, store: str, tmp_path: Path, tasks: int, labelers: int, kills: int
) -> None:
    address, file = free_address(), tmp_path / "answers.jsonl"
    new = [
        {"prompt": f"question {number}", "responses": [f"answer {number} {place}" for place in range(4)]}
        for number in range(tasks)
    ]
    file.write_text("".join(json.dumps(one) + "\n" for one in new))
    # Every start adds the same tasks again, which are known.
    process = _start(start, store, address, file)
    people = Labelers(address, wanted=3 * tasks)
    threads = [threading.Thread(target=people.run, args=(f"labeler-{n}",)) for n in range(labelers)]
    for thread in threads:
        thread.start()
    for number in range(1, kills + 1):
        while len(people.said) < number * people.wanted // (kills + 1) and not people.errors:
            time.sleep(0.01)
        process.popen.send_signal(signal.SIGKILL)
        process.popen.wait()
        process = _start(start, store, address, file)
    for thread in threads:
        thread.join()
    assert not people.errors, people.errors[0]

    with FeedbackClient(address, api_key="") as client:
        progress = client.figures("progress")
        assert (progress["tasks"], progress["done"], progress["late"]) == ({"closed": tasks}, 3 * tasks, 0)
        found = list(client.judgments())
        assert [one["judgment"] for one in found] == [*dict.fromkeys(one["judgment"] for one in found)]
        assert {one["judgment"] for one in found} == people.said.keys()
        assert set(Counter(one["task"] for one in found).values()) == {3}
        assert len({(one["task"], one["line"]["labeler"]) for one in found}) == 3 * tasks
        assert client.call("GET", "/log/verification")["head"]["seq"] == 3 * tasks
        agreement = client.figures("agreement")["agreement"]
        own = judgments.agreement(people.said.values(), seed=0).as_json()
        for name, value in own.items():
            assert agreement[name] == pytest.approx(value), name
        assert sum(client.add_tasks(new)) == 0
    assert process.stop() == 0
    assert "feedback stopped" in process.log.read_text()


@pytest.mark.slow
def test_service_of_iterate_is_found_by_prometheus(tmp_path: Path):
    config = load(None, overrides={"runs": str(tmp_path), "name": "mine"})
    config.folder.root.mkdir()
    with embedded(config) as service:
        service.connect().close()
        [entry] = json.loads(config.folder.feedback_targets.read_text())
        assert entry["labels"] == {"run": "mine", "process": "feedback", "service": "feedback"}
        with urllib.request.urlopen(f"http://{entry['targets'][0]}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        assert "fairlead_process_ready 1.0" in page
        assert 'fairlead_feedback_judgments_total{kind="ranking"} 0.0' in page
    assert json.loads(config.folder.feedback_targets.read_text()) == []
