"""The client of the tier below: what it asks, and what it makes of answers that are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr, ValidationError

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import ConfigurationError, RemoteRefused
from bss_sync.ports.connector import RangedSource
from bss_sync.ports.http import HttpResponse
from connectors.bss_sync.client import ChainSource
from connectors.bss_sync.config import ChainConfig
from tests.unit.connectors.test_bss_sync_mapper import ID, item

URL = "https://below.example"


@dataclass
class Below:
    """Answers each path with what a test put there, page by page; remembers what it was asked."""

    pages: dict[str, list[Any]]
    asked: list[tuple[str, Mapping[str, str] | None, Mapping[str, str] | None]] = field(default_factory=list)

    def request(
        self,
        method: str,  # noqa: ARG002 - the shape is HttpClient's
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        **given: Any,  # noqa: ARG002  the Protocol names it
    ) -> HttpResponse:
        path = urlsplit(url).path
        self.asked.append((path, None if params is None else dict(params), headers))
        left = self.pages.get(path, [])
        if not left:
            return HttpResponse(404, {}, b"{}")
        return HttpResponse(200, {}, json.dumps(left.pop(0)).encode())


def _source(below: Below, **settings: Any) -> ChainSource:
    return ChainSource(ChainConfig(base_url=URL + "/", **settings), {"token": SecretStr("bst_t")}, below)


def test_a_poll_goes_on_from_its_cursor_with_its_token() -> None:
    below = Below({"/v1/chain/changes": [{"items": [item()], "next_cursor": "c2", "has_more": True}]})
    page = _source(below, page_size=7).poll("c1")
    assert ([one.source_id for one in page.observations], page.cursor, page.more) == ([ID], "c2", True)
    ((_path, params, headers),) = below.asked
    assert params == {"limit": "7", "cursor": "c1"}
    assert headers == {"Authorization": "Bearer bst_t"}


def test_a_listing_ends_only_where_it_says_so() -> None:
    last: dict[str, Any] = {"items": [], "next_cursor": None}
    pages: dict[str, list[Any]] = {
        "/v1/chain/records/account": [{"items": [item()], "next_cursor": "c1"}, last],
        "/v1/chain/records/subscription": [{"items": [item("subscription")]}],
    }
    listed = _source(Below(pages)).list_all()
    assert next(listed).kind is Kind.ACCOUNT
    assert next(listed).kind is Kind.SUBSCRIPTION
    with pytest.raises(RemoteRefused, match="does not say how to go on"):
        next(listed)


def test_a_listing_that_goes_in_a_circle_is_broken_off() -> None:
    again = {"items": [item()], "next_cursor": "c1"}
    with pytest.raises(RemoteRefused):
        list(_source(Below({"/v1/chain/records/account": [again, again, again]})).list_all())


def test_ranges_are_asked_for_in_portions_and_only_where_an_id_can_be() -> None:
    last: dict[str, Any] = {"items": [], "next_cursor": None}
    below = Below({f"/v1/chain/records/{kind}": [last, last] for kind in Kind})
    names = ["", "xyz", *(f"{number:03x}" for number in range(150))]
    assert list(_source(below).list_ranges(names)) == []
    asked = [params["range"].split(",") for _path, params, _headers in below.asked if params is not None]
    assert [len(portion) for portion in asked] == [100, 50, 100, 50]


def test_what_the_tier_below_has_never_heard_of_is_none() -> None:
    below = Below({})
    assert _source(below).fetch(Kind.ACCOUNT, "../a b") is None
    assert [path for path, _params, _headers in below.asked] == ["/v1/chain/records/account/..%2Fa%20b"]


def test_another_entity_than_was_asked_for_is_refused() -> None:
    below = Below({f"/v1/chain/records/account/{ID}": [item("subscription")]})
    with pytest.raises(RemoteRefused, match="another entity"):
        _source(below).fetch(Kind.ACCOUNT, ID)


def test_digests_name_the_receiver_and_are_left_out_by_setting() -> None:
    below = Below({"/v1/chain/digests": [{"ranges": {"0d9": [1, "2.3"]}}]})
    source = _source(below)
    assert isinstance(source, RangedSource)
    assert source.ranges("us") is not None
    assert below.asked[0][1] == {"without": "us", "of": "text"}
    assert _source(below, compare="rows").ranges("us") is None
    assert len(below.asked) == 1


def test_another_format_is_named_when_it_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="format 2"):
        _source(Below({"/v1/chain": [{"format": 2}]})).check()


@pytest.mark.parametrize("wrong", ["ftp://below.example", "below.example", "https://", "https://b.example/?q=1"])
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        ChainConfig(base_url=wrong)
