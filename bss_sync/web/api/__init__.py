"""The read and edit API (contract: HTTP). Every route says which right it needs; every query runs as its caller."""

from __future__ import annotations

from fastapi import APIRouter

from bss_sync.domain.change import Kind
from bss_sync.domain.relation import Relation
from bss_sync.web.api import administration, chain, hierarchy, messages, oversight, replays, story
from bss_sync.web.api.administration import takeover_router
from bss_sync.web.api.records import record_router
from bss_sync.web.api.relations import relation_router


def routers() -> list[APIRouter]:
    """Every router of the API."""
    return [
        *(record_router(kind) for kind in Kind),
        *(relation_router(relation) for relation in Relation),
        hierarchy.router,
        messages.router,
        story.router,
        replays.router,
        oversight.router,
        chain.router,
        administration.router,
        administration.approvals,
        *(takeover_router(kind) for kind in Kind),
    ]
