"""Cloud Resell sells, and changes what it has sold: what of it Cloud sees, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bss_sync.demo.stage import DISTRIBUTOR, side_by_side
from bss_sync.demo.world import (
    BASIC,
    CONNECTION,
    OWN_PRODUCT,
    PHONE,
    PREMIUM,
    RESELLER,
    STANDARD,
    YEAR,
    World,
    check,
    on,
)
from bss_sync.domain.change import Json, Kind

LITE, X, Y, Z = "lite-1", "cust-x", "cust-y", "cust-z"
ACCOUNTS: dict[str, dict[str, Json]] = {
    LITE: {"name": "Cloud Lite", "kind": "reseller", "number": "R-001"},
    X: {"name": "Cloud Customer X", "parent_id": LITE, "number": "C-1001", "email": "it@customer-x.example"},
    Y: {"name": "Cloud Customer Y", "parent_id": LITE, "number": "C-1002", "email": "it@customer-y.example"},
    Z: {"name": "Cloud End-Customer Z", "number": "C-2001", "email": "it@customer-z.example"},
}


def _sale(account: str, product: str, quantity: int, **members: Json) -> dict[str, Json]:
    """A subscription as Cloud Resell's BSS keeps it: with a sales price, which never crosses."""
    dates = {"start_date": on("01-01"), "end_date": on("12-31"), "activation_date": on("01-01")}
    own = {"sales_price": "29.90", "term": "P1Y"}
    return {"account_id": account, "product": product, "quantity": quantity, **dates, **own, **members}


def first_sales(world: World) -> None:
    """Accounts, paid subscriptions, a trial, a product of the reseller's own."""
    narrator = world.narrator
    narrator.chapter(
        f"{RESELLER} sells, {DISTRIBUTOR} sees what concerns it",
        f"What {RESELLER} does → what {DISTRIBUTOR} sees. Times: until {DISTRIBUTOR}'s mirror / its own BSS showed it.",
    )
    for source_id, account in ACCOUNTS.items():
        world.change("PUT", Kind.ACCOUNT, source_id, account, on("01-01"))
    for source_id in ACCOUNTS:
        world.reason(source_id, "out_of_scope")
    check("accounts without a subscription in the mirror", [], world.items("/v1/accounts", connection=CONNECTION))
    narrator.act("enters Cloud Lite, X and Y below it, and Z", "nothing: accounts follow their first paid subscription")
    _sell(world, "sub-x", "X buys 20 × Business Basic", _sale(X, BASIC, 20), (LITE, X))
    _sell(world, "sub-z", "Z buys 5 × Business Standard", _sale(Z, STANDARD, 5), (Z,))
    world.change("PUT", Kind.SUBSCRIPTION, "sub-y", _sale(Y, PREMIUM, 10, trial=True), on("02-01"))
    _stays_out(world, "sub-y", "Y tries 10 × Business Premium for a month")
    world.change("PUT", Kind.SUBSCRIPTION, "sub-own", _sale(Z, OWN_PRODUCT, 1), on("02-01"))
    _stays_out(world, "sub-own", f"Z buys {OWN_PRODUCT}, {RESELLER}'s own product")
    check("the sales price in the mirror", None, (world.record(Kind.SUBSCRIPTION, "sub-x") or {}).get("sales_price"))
    narrator.gap()
    narrator.quote(world.tree())


def _sell(world: World, source_id: str, words: str, sale: dict[str, Json], accounts: tuple[str, ...]) -> None:
    began = time.monotonic()
    world.change("PUT", Kind.SUBSCRIPTION, source_id, sale, on("01-01"))
    expected = {name: sale[name] for name in ("product", "quantity", "end_date")} | {"status": "active"}
    milliseconds = world.arrives(Kind.SUBSCRIPTION, source_id, expected, since=began)
    for account in accounts:
        world.arrives(Kind.ACCOUNT, account, {"name": ACCOUNTS[account]["name"]})
    names = " and ".join(str(ACCOUNTS[account]["name"]) for account in accounts)
    world.narrator.act(words, f"it, and {names}", *milliseconds)


def _stays_out(world: World, source_id: str, words: str) -> None:
    reason = world.reason(source_id, "out_of_scope")
    check(f"{source_id} in the mirror", None, world.record(Kind.SUBSCRIPTION, source_id))
    world.narrator.act(words, f"not copied: {reason}")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a sold subscription or of an account, and what has to arrive at Cloud."""

    words: str
    seen: str
    source_id: str
    body: dict[str, Json]
    since: str
    kind: Kind = Kind.SUBSCRIPTION
    method: str = "PATCH"
    expected: Mapping[str, object] | None = None
    external: Mapping[str, object] | None = None


CHANGES = (
    Change("upgrades X to Business Premium", f"{PREMIUM}", "sub-x", {"product": PREMIUM}, "02-01"),
    Change("changes X's quantity from 20 to 25", "25", "sub-x", {"quantity": 25}, "02-15"),
    Change(
        "adds Teams Phone for 5 of X's users",
        f"5 × {PHONE}, below it",
        "sub-x-phone",
        _sale(X, PHONE, 5, parent_id="sub-x"),
        "02-20",
        method="PUT",
        expected={"product": PHONE, "quantity": 5, "parent_id": "sub-x"},
        external={"product": PHONE, "quantity": "5"},
    ),
    Change("Y's trial becomes a paid subscription", "Y enters, with 10", "sub-y", {"trial": False}, "03-01"),
    Change(
        "removes Teams Phone from X",
        "ended, kept as a tombstone",
        "sub-x-phone",
        {},
        "04-01",
        method="DELETE",
        expected={"deleted": True},
        external={"ended": True},
    ),
    Change("suspends Z: it has not paid", "suspended", "sub-z", {"status": "suspended"}, "04-05"),
    Change("resumes Z", "active", "sub-z", {"status": "active"}, "04-12"),
    Change(
        "renews X for another year",
        f"until {YEAR + 1}-12-31",
        "sub-x",
        {"end_date": f"{YEAR + 1}-12-31", "auto_renew": True},
        "05-01",
    ),
    Change(
        "Z cancels to the end of June",
        f"cancelled, ends {on('06-30')}",
        "sub-z",
        {"status": "cancelled", "cancellation_date": on("05-20"), "end_date": on("06-30"), "auto_renew": False},
        "05-20",
    ),
    Change(
        "moves Y away from Cloud Lite",
        f"Y directly below {RESELLER}",
        Y,
        {"parent_id": None},
        "07-01",
        kind=Kind.ACCOUNT,
    ),
)


def changes(world: World) -> None:
    """Every commercial change, each followed until Cloud's own BSS has it."""
    narrator = world.narrator
    narrator.chapter(
        "Every change follows",
        f"{RESELLER} acts in its own BSS; the same appears at {DISTRIBUTOR}, locked by {RESELLER}.",
    )
    for change in CHANGES:
        _follow(world, change)
    check("Y's account in the mirror", "Cloud Customer Y", (world.record(Kind.ACCOUNT, Y) or {}).get("name"))
    looks: list[Callable[[], str]] = [partial(world.tree, "--as-of", on("06-30")), world.tree]
    then, now = side_by_side(looks)
    narrator.gap()
    narrator.say(f"bss-sync tree --as-of {on('06-30')}   (the last day before Y moved)")
    narrator.quote(then)
    narrator.say("bss-sync tree   (now)")
    narrator.quote(now)
    check("Y below Cloud Lite on 30 June, and not any more", (True, False), (_below_lite(then), _below_lite(now)))


def _follow(world: World, change: Change) -> None:
    began = time.monotonic()
    world.change(change.method, change.kind, change.source_id, change.body, on(change.since))
    expected = change.body if change.expected is None else change.expected
    milliseconds = world.arrives(change.kind, change.source_id, expected, since=began, external=change.external)
    record = world.record(change.kind, change.source_id) or {}
    locked = {name for name in expected if name in record["ownership"]}
    owners = {(record["ownership"][name]["owner"], record["ownership"][name]["locked"]) for name in locked}
    if locked:
        check(f"who owns {', '.join(sorted(locked))} of {change.source_id}", {(RESELLER, True)}, owners)
    world.narrator.act(change.words, change.seen, *milliseconds)


def _below_lite(tree: str) -> bool:
    """Whether Y stands deeper than Cloud Lite in a printed tree."""
    depths = {
        name: line.index(name)
        for line in tree.splitlines()
        for name in ("Cloud Lite", "Cloud Customer Y")
        if name in line
    }
    return depths["Cloud Customer Y"] > depths["Cloud Lite"]
