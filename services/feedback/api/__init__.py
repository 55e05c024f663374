"""The API of the feedback service, a module for each kind of caller's work. `routers` is the entry point."""

from __future__ import annotations

from fastapi import APIRouter

from services.feedback.api import (
    artifacts,
    audit,
    collection,
    figures,
    hand_in,
    imports,
    judgments,
    people,
    projects,
    prompts,
    rounds,
    sessions,
    snapshots,
    tasks,
    work,
)
from services.feedback.service import Service


def routers(service: Service) -> list[APIRouter]:
    """Return the routes, in the order of the API page."""
    modules = (
        sessions,
        work,
        hand_in,
        tasks,
        prompts,
        collection,
        imports,
        judgments,
        figures,
        snapshots,
        projects,
        people,
        artifacts,
        rounds,
        audit,
    )
    return [module.router(service) for module in modules]
