"""What the tier below pushes: nothing in this version. It is polled, by default every five seconds."""

from __future__ import annotations

from typing import Any

from bss_sync.ports.connector import HookParser


def no_hooks(config: Any) -> HookParser | None:  # noqa: ARG001 - the shape is ConnectorSpec's
    """None: there is no format of its own to parse."""
    return None
