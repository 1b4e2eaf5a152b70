"""Values that are made quickly are what the frozen dataclass would be."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace

import pytest

from bss_sync.domain.made_quickly import made_quickly


@dataclass(frozen=True, slots=True)
class _Frozen:
    name: str
    number: int = 7
    members: dict[str, int] = field(default_factory=dict)
    secret: str = field(default="", repr=False)


@made_quickly
@dataclass(frozen=True, slots=True)
class _Quick:
    name: str
    number: int = 7
    members: dict[str, int] = field(default_factory=dict)
    secret: str = field(default="", repr=False)


def test_it_is_made_from_the_same_arguments() -> None:
    pairs = (
        (_Quick("a"), _Frozen("a")),
        (_Quick("a", 1), _Frozen("a", 1)),
        (_Quick(secret="s", members={"x": 1}, name="a"), _Frozen(secret="s", members={"x": 1}, name="a")),
    )
    for quick, frozen in pairs:
        told = [(getattr(quick, one.name), getattr(frozen, one.name)) for one in fields(_Frozen)]
        assert all(ours == theirs for ours, theirs in told), told


def test_what_is_missing_or_unknown_is_refused() -> None:
    with pytest.raises(TypeError, match="name"):
        _Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        _Quick("a", other=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        _Quick("a").other = 1  # type: ignore[attr-defined]


def test_no_two_share_a_default_that_may_change() -> None:
    assert _Quick("a").members is not _Quick("a").members


def test_it_compares_hashes_copies_and_shows_as_before() -> None:
    one = _Quick("a", 1, secret="s")
    assert one == _Quick("a", 1, secret="s")
    assert one != _Quick("a", 2, secret="s")
    assert replace(one, number=2) == _Quick("a", 2, secret="s")
    assert copy.copy(one) == one
    assert repr(one) == repr(_Frozen("a", 1, secret="s")).replace("_Frozen", "_Quick")
    assert hash(replace(one, members=())) == hash(_Frozen("a", 1, (), "s"))  # type: ignore[arg-type]
