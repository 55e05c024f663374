"""The pages of the feedback service: HTML that works without JavaScript. `routers` is the entry point.

A handler reads a form, calls the store as the API does, and renders a template or redirects.
"""

from __future__ import annotations

from fastapi import APIRouter

from services.feedback.pages import (
    audit,
    disagreements,
    exports,
    figures,
    forget,
    guidelines,
    home,
    judges,
    mine,
    people,
    quiz,
    revisions,
    rounds,
    screen,
    sign_in,
    static,
    tasks,
    work,
)
from services.feedback.pages.page import Renderer
from services.feedback.service import Service


def routers(service: Service, renderer: Renderer) -> list[APIRouter]:
    """Return the routes of all pages."""
    modules = (
        static,
        sign_in,
        home,
        work,
        revisions,
        mine,
        guidelines,
        quiz,
        figures,
        judges,
        rounds,
        disagreements,
        tasks,
        screen,
        people,
        forget,
        exports,
        audit,
    )
    return [module.router(service, renderer) for module in modules]
