"""Fault knobs: what goes wrong, with which calls, how often."""

from __future__ import annotations

import random
import threading
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Fault(BaseModel):
    """One knob. Several may match a call: the first one that still has a turn acts.

    Its turn comes after ``skip`` matching calls, for ``times`` calls (None: for ever), for a ``share`` of them.
    """

    model_config = ConfigDict(extra="forbid")

    method: str | None = Field(None, description="GET, POST, …; none: every method")
    path: str = Field("/", description="prefix of the path")
    skip: int = Field(0, ge=0, description="matching calls that pass before it acts")
    times: int | None = Field(None, ge=1, description="calls it acts on; none: all")
    share: float = Field(1.0, gt=0, le=1, description="share of the calls it acts on, drawn with the seed")
    seed: int = Field(0, description="seed of the draw")

    delay_seconds: float = Field(0, ge=0, description="wait before the call is handled")
    status: Annotated[int, Field(ge=300, le=599)] | None = Field(None, description="answer so, without effect")
    retry_after_seconds: float | None = Field(None, ge=0, description="Retry-After of that answer")
    reset: bool = Field(False, description="reset the connection, without effect")
    apply_then_drop: bool = Field(False, description="let it take effect, then close without an answer")
    truncate: bool = Field(False, description="let it take effect, then break off halfway through the answer")


class _Armed:
    """A knob with its counters."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.matched = 0
        self.acted = 0
        self._random = random.Random(fault.seed)  # noqa: S311 - reproducible, no secret

    def take(self, method: str, path: str) -> bool:
        fault = self.fault
        if fault.method not in (None, method) or not path.startswith(fault.path):
            return False
        if fault.times is not None and self.acted >= fault.times:
            return False
        self.matched += 1
        if self.matched <= fault.skip or (fault.share < 1 and self._random.random() >= fault.share):
            return False
        self.acted += 1
        return True


class Faults:
    """The knobs of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []

    def add(self, fault: Fault) -> None:
        """Arm one more knob."""
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._armed.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this call meets, if any."""
        with self._lock:
            return next((armed.fault for armed in self._armed if armed.take(method, path)), None)

    def view(self) -> list[dict[str, Any]]:
        """Every knob with how many calls it matched and acted on."""
        with self._lock:
            return [
                armed.fault.model_dump(exclude_defaults=True) | {"matched": armed.matched, "acted": armed.acted}
                for armed in self._armed
            ]
