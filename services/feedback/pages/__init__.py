"""The pages of the feedback service: forms that work without a script. `routers` is the entry point."""

from __future__ import annotations

from fastapi import APIRouter

from services.feedback.pages import sign_in, work
from services.feedback.pages.rendering import Pages
from services.feedback.service import Service


def routers(service: Service, pages: Pages) -> list[APIRouter]:
    """Return the routes of all pages."""
    return [sign_in.router(service, pages), work.router(service, pages), pages.static_files()]
