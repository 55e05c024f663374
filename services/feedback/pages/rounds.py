"""Rounds of `fairlead iterate` for leads: what people said, what was made of it, what each waits for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response

from fairlead import judgments
from fairlead.judgments import Agreement, Judgment
from services.feedback.identity import CurrentIdentity
from services.feedback.pages.page import Renderer, routes
from services.feedback.pages.recent import Recent
from services.feedback.reckoning import MEASURED, SEED, rankings
from services.feedback.service import Service
from services.feedback.store.artifacts import Artifact
from services.feedback.store.judged import Snapshot
from services.feedback.store.rounds import RoundCounts, RoundReport

_AGREEMENT_SECONDS = 60.0
"""For how long a figure of agreement is shown before it is computed again."""
_DOING = {
    "judgments": "waits for judgments",
    "reward_model": "trains the reward model",
    "gate": "compares the reward model with the one before",
    "ppo": "trains the policy",
    "evaluate": "evaluates the policy",
    "evaluate_and_sample": "evaluates the policy, which answers the next tasks",
}
"""What a run does in each step."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round of a project."""

    number: int
    """From 0."""
    counts: RoundCounts | None
    """What people were asked and said; None without tasks."""
    agreement: Agreement | None
    """How far people agree on its tasks drawn at random; None without judgments."""
    reports: Sequence[RoundReport]
    """What each run has reported."""
    snapshots: Sequence[Snapshot]
    """The newest snapshot of each cohort."""
    models: Sequence[Artifact]
    """Reward models and policies, the oldest first."""

    def waits_for(self, report: RoundReport) -> str:
        """Return what a run does now, or waits for."""
        if report.state == "stopped":
            return report.message
        if report.step == "judgments" and report.wanted is not None:
            have = self.counts.train if self.counts else 0
            return f"waits for judgments: {have} of {report.wanted}"
        return _DOING.get(report.step, report.step.replace("_", " "))


def router(service: Service, renderer: Renderer) -> APIRouter:
    """Return the route."""
    api = routes()
    recent = Recent[str, dict[int, Agreement]](_AGREEMENT_SECONDS)

    @api.get("/projects/{project}/rounds")
    async def show(project: str, identity: CurrentIdentity) -> Response:
        def build_page() -> Response:
            known = service.store.projects.get(project)
            agreements = recent.get(known.id, lambda: _agreements(service, known.id))
            return renderer.page(
                "lead/rounds", identity.worker, project=known, rounds=rounds(service, known.id, agreements)
            )

        return await service.threads.run(build_page)

    return api


def rounds(service: Service, project: str, agreements: dict[int, Agreement]) -> list[Round]:
    """Return the rounds of a project, the newest first."""
    store = service.store
    counts = {one.number: one for one in store.rounds.counts(project)}
    reports: dict[int, list[RoundReport]] = defaultdict(list)
    for report in store.rounds.reports(project):
        reports[report.number].append(report)
    snapshots = [one for one in store.snapshots.all() if one.filter.project == project]
    of_round = store.rounds.of_snapshots()
    models = _models(service, {one.digest for one in snapshots})
    return [
        Round(
            number,
            counts.get(number),
            agreements.get(number),
            reports[number],
            _newest([one for one in snapshots if of_round.get(one.digest) == number]),
            [one for one in models if one.details.get("round") == number],
        )
        for number in sorted(counts.keys() | reports.keys(), reverse=True)
    ]


def _agreements(service: Service, project: str) -> dict[int, Agreement]:
    found: dict[int, list[Judgment]] = defaultdict(list)
    for one in rankings(service, project, MEASURED):
        found[one.task.round].append(one.judgment)
    return {number: judgments.agreement(several, seed=SEED) for number, several in found.items()}


def _newest(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the last snapshot of each choice of cohorts and people."""
    return list({(one.filter.cohorts, one.filter.people): one for one in snapshots}.values())


def _models(service: Service, snapshots: set[str]) -> list[Artifact]:
    """Return the models that were made of some of the snapshots."""
    artifacts = service.store.artifacts
    return [
        one
        for one in artifacts.all()
        if one.kind != "snapshot" and any(source.id in snapshots for source in artifacts.sources(one.id))
    ]
