"""Snapshots: lists of judgments named by their digest, and the files that are made of them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from fastapi import Response as HttpResponse
from pydantic import Field

from fairlead.errors import NotFound
from services.feedback.api.bodies import Body, Kind, Why, routes, wire_names
from services.feedback.exports.card import About, folder
from services.feedback.exports.formats import FORMATS, export
from services.feedback.identity import CurrentIdentity
from services.feedback.service import Service
from services.feedback.store.judged import Filter, Snapshot

JSON_LINES = "application/x-ndjson"
_MEDIA_TYPES = {"jsonl": JSON_LINES, "json": "application/json"}


class SnapshotRequest(Body):
    """Which judgments are in it."""

    project: str | None = Field(default=None, max_length=64)
    """Name of the project; that of the configuration by default."""
    kinds: list[Kind] = ["rank", "pair"]  # noqa: RUF012 - pydantic copies it
    """Kinds of tasks."""
    cohorts: list[Literal["train", "heldout"]] = ["train"]  # noqa: RUF012
    """Cohorts of people; those who are held out only measure."""
    people: list[Literal["labeler", "judge", "simulated", "import"]] = ["labeler", "simulated", "import"]  # noqa: RUF012
    """Kinds of people. `judge` is allowed without others, in a project whose `judges` is `train`."""
    whys: list[Why] = ["random", "uncertain", "fresh", "audit"]  # noqa: RUF012
    """Why the task was chosen."""
    rounds: list[int] = []  # noqa: RUF012
    """Rounds; empty for all."""
    without: list[str] = []  # noqa: RUF012
    """Ids of people who are left out."""
    late: bool = True
    """Whether judgments that came late are in it."""
    until: int | None = None
    """Last entry of the log that is read; the newest by default."""

    def filter(self, project: str) -> Filter:
        """Return it as the store takes it, with the id of the project."""
        return Filter(
            project=project,
            kinds=tuple(self.kinds),
            cohorts=tuple(self.cohorts),
            people=tuple(self.people),
            whys=tuple(self.whys),
            rounds=tuple(self.rounds),
            without=tuple(self.without),
            late=self.late,
            until=self.until,
        )


class AboutBody(Body):
    """What a card says that the log does not know."""

    title: str
    """Name of the data set."""
    license: str
    """Identifier of the licence, as the hub has it, such as `cc-by-4.0`."""
    languages: list[str] = ["en"]  # noqa: RUF012 - pydantic copies it
    """Codes of the languages."""
    consent: str = ""
    """By what the authors of prompts and the labelers agreed."""
    withdrawal: str = ""
    """How somebody has their part withdrawn."""


def router(service: Service) -> APIRouter:
    """Return the routes."""
    api = routes("snapshots")
    store, run = service.store, service.threads.run

    @api.post("/snapshots", summary="Make a snapshot")
    async def make(body: SnapshotRequest) -> dict[str, Any]:
        """Keep the list of the judgments that a filter selects now; the same list has the same digest."""
        project = await run(store.projects.get, body.project or service.section.project.name)
        with wire_names():
            found = await run(store.snapshots.make, body.filter(project.id))
        service.metrics.snapshots.inc()
        return _shown(found)

    @api.get("/snapshots", summary="List snapshots")
    async def list_all() -> dict[str, Any]:
        """Return all snapshots, the oldest first."""
        return {"snapshots": [_shown(one) for one in await run(store.snapshots.all)]}

    @api.get(
        "/snapshots/{name}",
        response_model=None,
        responses={200: {"content": {JSON_LINES: {}}}},
        summary="Read a snapshot",
    )
    async def read(name: str, identity: CurrentIdentity) -> HttpResponse | dict[str, Any]:
        """Return a snapshot by its digest, or its judgments as JSON lines.

        `<digest>.rankings`, `.pairs`, `.demonstrations` and `.prompts` are files that the stages read,
        `.argilla` and `.label-studio` those of other tools. The same digest always has the same bytes.
        """
        digest, dot, kind = name.partition(".")
        if not dot:
            return _shown(await run(store.snapshots.get, digest))
        if kind not in FORMATS:
            raise NotFound(f"no format {kind!r} of snapshots; there are: {', '.join(FORMATS)}")
        judged = await run(store.snapshots.read, digest)
        await run(store.accesses.add, identity.name, "export", digest)
        content = await run(export, judged, kind)
        suffix = FORMATS[kind][0]
        return _download(content, f"{digest[:16]}.{kind}.{suffix}", _MEDIA_TYPES[suffix])

    @api.post(
        "/snapshots/{name}/folder",
        response_model=None,
        responses={200: {"content": {"application/zip": {}}}},
        summary="Make a data set",
    )
    async def make_folder(name: str, body: AboutBody, identity: CurrentIdentity) -> HttpResponse:
        """Return a folder with a dataset card as a ZIP file; the guidelines are the newest of the project."""
        content = await run(zipped_folder, service, name, body)
        await run(store.accesses.add, identity.name, "export", name)
        return _download(content, f"{name[:16]}.zip", "application/zip")

    return api


def zipped_folder(service: Service, digest: str, body: AboutBody) -> bytes:
    """Return the files of a data set with its card as a ZIP file; the same snapshot gives the same bytes."""
    store = service.store
    snapshot = store.snapshots.get(digest)
    guidelines = store.projects.guidelines(snapshot.filter.project)
    about = About(
        title=body.title,
        license=body.license,
        languages=tuple(body.languages),
        guidelines=guidelines[-1].text if guidelines else "",
        consent=body.consent,
        withdrawal=body.withdrawal,
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in folder(store.snapshots.read(digest), snapshot, about).items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _download(content: bytes, name: str, media_type: str) -> HttpResponse:
    """Return a file that a browser saves: what people wrote must not be taken for a page."""
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    return HttpResponse(content, media_type=media_type, headers=headers)


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    return asdict(snapshot)
