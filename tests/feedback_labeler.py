"""Labelers in a process: `python -m tests.feedback_labeler ADDRESS PROJECT JOURNAL PERSON [PERSON ...]`.

Each person is a thread with a connection of its own. It notes a request before it hands in and the receipt
after, sends again what has no receipt, and ends when the project wants nothing more.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from services.feedback.store import Store, open_store
from services.feedback.store.judged import Ranking

DEADLINE_SECONDS = 600.0


def receipts(journal: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Return the entries by request that were acknowledged, and all requests."""
    acknowledged, asked = {}, {}
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            # The last line of a process that was killed.
            continue
        if "entry" in values:
            acknowledged[values["request"]] = values["entry"]
        else:
            asked[values["request"]] = values
    return acknowledged, asked


def label(store: Store, project: str, person: str, journal: Path) -> None:
    """Work until the project wants nothing more."""
    acknowledged, asked = receipts(journal)
    with journal.open("ab", buffering=0) as file:
        # A line may have been cut; this ends it.
        file.write(b"\n")

        def hand_in(values: dict[str, Any]) -> None:
            receipt = store.judgments.hand_in(
                values["assignment"], person, Ranking(values["ranks"]), request=values["request"]
            )
            assert not receipt.late
            file.write(json.dumps({"request": values["request"], "entry": receipt.entry}).encode() + b"\n")

        for request, values in asked.items():
            if request not in acknowledged:
                hand_in(values)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            offer = store.leases.take(person, project)
            if offer is None:
                if store.figures.progress(project).wanted == 0:
                    return
                time.sleep(0.02)
                continue
            ranks = {answer: place for place, (answer, _) in enumerate(offer.answers, start=1)}
            values = {"request": uuid.uuid4().hex, "assignment": offer.assignment.id, "ranks": ranks}
            file.write(json.dumps(values).encode() + b"\n")
            hand_in(values)
    raise TimeoutError("the project still wants judgments")


def main() -> None:
    address, project, journal, *people = sys.argv[1:]
    failures: list[BaseException] = []

    def work(person: str) -> None:
        try:
            label(store, project, person, Path(f"{journal}-{person}"))
        except BaseException as error:
            failures.append(error)
            raise

    with open_store(address) as store:
        threads = [threading.Thread(target=work, args=(person,)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
