"""Who floods: much from one while another sends little, and nobody else."""

from __future__ import annotations

from uuid import uuid4

from bss_sync.adapters.floods import FLOOD_MESSAGES, LOOK_SECONDS, NEAR_SECONDS, SUDDEN_SECONDS, Floods

ONE, OTHER = uuid4(), uuid4()


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _busy(floods: Floods, clock: _Clock, seconds: float, **rates: float) -> dict[str, bool]:
    """Messages a second of the two; what each was taken for last."""
    taken = {}
    for tick in range(round(seconds * 100)):
        clock.now += 0.01
        for name, one in (("one", ONE), ("other", OTHER)):
            if name in rates and tick % max(1, round(100 / rates[name])) == 0:
                taken[name] = floods.note(one, max(1, round(rates[name] / 100)))
    return taken


def test_one_who_sends_much_beside_one_who_sends_little_floods() -> None:
    clock = _Clock()
    assert _busy(Floods(clock), clock, 2, one=500, other=4) == {"one": True, "other": False}


def test_a_flood_is_known_by_its_first_messages() -> None:
    clock = _Clock()
    floods = Floods(clock)
    _busy(floods, clock, 2, other=4)
    taken = []
    for _array in range(4):
        clock.now += 1.5 * SUDDEN_SECONDS
        taken.append(floods.note(ONE, 50))
    assert taken == [False, True, True, True], "the second one makes it more than a little"


def test_alone_nobody_floods() -> None:
    clock = _Clock()
    assert _busy(Floods(clock), clock, 2, one=5000) == {"one": False}


def test_where_all_send_much_nobody_floods() -> None:
    clock = _Clock()
    assert _busy(Floods(clock), clock, 2, one=500, other=300) == {"one": False, "other": False}


def test_who_sends_a_little_more_than_another_is_no_flood() -> None:
    clock = _Clock()
    assert _busy(Floods(clock), clock, 2, one=FLOOD_MESSAGES / 2, other=2) == {"one": False, "other": False}


def test_a_flood_is_forgotten_when_the_others_have_gone_or_it_has_ended() -> None:
    clock = _Clock()
    floods = Floods(clock)
    assert _busy(floods, clock, 2, one=500, other=4)["one"]
    assert not _busy(floods, clock, NEAR_SECONDS + 1, one=500)["one"], "it is alone"
    assert _busy(floods, clock, 2, one=500, other=4)["one"]
    assert not _busy(floods, clock, 6 + LOOK_SECONDS, one=4, other=4)["one"]
