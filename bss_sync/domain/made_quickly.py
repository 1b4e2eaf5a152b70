"""Values of which thousands are made for every batch: frozen for whoever reads and checks the code, quick to make."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import TypeVar

Value = TypeVar("Value")


def made_quickly(frozen: type[Value]) -> type[Value]:
    """A frozen dataclass with slots, made in a third of the time.

    Frozen ones set each field past their own guard, at 90 ns a field instead of 25. Here the guard is the type
    checker's alone: nothing is refused while the program runs.
    """
    told = [
        (one.name, object, field(default=one.default, default_factory=one.default_factory))
        for one in fields(frozen)  # type: ignore[arg-type]  # it is a dataclass
    ]
    plain = make_dataclass(frozen.__name__, told, eq=False, repr=False)
    frozen.__init__ = plain.__init__  # type: ignore[misc, method-assign]  # the same fields in the same order
    del frozen.__setattr__, frozen.__delattr__
    return frozen
