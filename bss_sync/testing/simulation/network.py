"""The way of a webhook: dropped, doubled, delayed, reordered."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from bss_sync.domain.change import Change


@dataclass
class Network:
    """Messages on their way. What a sender gave up is lost; what is on its way arrives in any order."""

    chance: Random
    loss: float
    doubled: float
    on_the_way: list[Change] = field(default_factory=list)
    lost: int = 0

    def send(self, change: Change) -> None:
        """The sender hands a message over."""
        if self.chance.random() < self.loss:
            self.lost += 1
            return
        self.on_the_way.append(change)
        if self.chance.random() < self.doubled:
            self.on_the_way.append(change)

    def arrive(self) -> list[Change]:
        """What arrives now: one request with one to three messages, each from anywhere on the way."""
        count = min(len(self.on_the_way), self.chance.choice((1, 1, 1, 2, 3)))
        return [self.on_the_way.pop(self.chance.randrange(len(self.on_the_way))) for _ in range(count)]
