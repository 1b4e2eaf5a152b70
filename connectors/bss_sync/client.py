"""Calls to the instance of the tier below (its routes /v1/chain)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from pydantic import SecretStr

from bss_sync.domain.change import Json, Kind
from bss_sync.domain.circles import Circle
from bss_sync.domain.errors import ConfigurationError, RemoteRefused
from bss_sync.ports.connector import Observation, Page, RangeDigest, RangeForm
from bss_sync.ports.http import HttpClient, HttpResponse
from connectors.bss_sync.config import ChainConfig
from connectors.bss_sync.mapper import observation, observations, range_digests

FORMAT = 1
"""The answers that this version reads."""

RANGES_AT_ONCE = 100
_WRONG_CURSOR_STATUS = 422
_RANGE = re.compile("[0-9a-f]{3}")


class ChainSource:
    """The instance below, asked: SourceClient and RangedSource."""

    def __init__(self, config: ChainConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> None:
        self._config = config
        self._token = secrets.get("token")
        self._http = http

    def check(self) -> str:
        """See SourceClient. ConfigurationError when it speaks another format than this version."""
        link = self._get("/v1/chain")
        if link.get("format") != FORMAT:
            raise ConfigurationError(
                f"base_url: the instance below speaks format {link.get('format')!r} of the chain, this one {FORMAT}.",
                next_step="Bring both instances to the same version.",
            )
        return f"bss_sync of {link.get('distributor')}, instance {link.get('instance')}"

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        """See SourceClient."""
        path = f"/v1/chain/records/{kind}/{quote(source_id, safe='')}"
        response = self._call(path)
        if response.status == 404:
            return None
        seen = observation(_object(response, path))
        if (seen.kind, seen.source_id) != (kind, source_id):
            raise RemoteRefused(f"{path} was answered with another entity.", status=response.status)
        return seen

    def list_all(self) -> Iterator[Observation]:
        """See SourceClient."""
        for kind in Kind:
            yield from self._listed(kind, {})

    def poll(self, cursor: str | None) -> Page:
        """See SourceClient. Each state of history, in the order in which the tier below recorded them."""
        limit = {"limit": str(self._config.page_size)}
        try:
            answer, anew = self._get("/v1/chain/changes", limit | ({} if cursor is None else {"cursor": cursor})), False
        except RemoteRefused as refusal:
            if cursor is None or refusal.status != _WRONG_CURSOR_STATUS:
                raise
            # It went back to a version that cannot read its own cursor: whoever begins anew misses nothing.
            answer, anew = self._get("/v1/chain/changes", limit), True
        seen = [one for item in _items(answer) for one in observations(item)]
        after, more = answer.get("next_cursor"), answer.get("has_more")
        if not isinstance(after, str) or not isinstance(more, bool):
            raise RemoteRefused("/v1/chain/changes does not say how to go on.", status=200)
        return Page(seen, after, more, anew=anew or answer.get("anew") is True)

    def ranges(self, receiver: str) -> Mapping[str, RangeDigest] | None:
        """See RangedSource."""
        if self._config.compare == "rows":
            return None
        return range_digests(self._get("/v1/chain/digests", {"without": receiver, "of": RangeForm.TEXT}))

    def list_ranges(self, ranges: Sequence[str]) -> Iterator[Observation]:
        """See RangedSource. A range that no id can be in has nothing."""
        names = [name for name in ranges if _RANGE.fullmatch(name)]
        for kind in Kind:
            for start in range(0, len(names), RANGES_AT_ONCE):
                yield from self._listed(kind, {"range": ",".join(names[start : start + RANGES_AT_ONCE])})

    def _listed(self, kind: Kind, params: Mapping[str, str]) -> Iterator[Observation]:
        """Every page. Only an explicit ``next_cursor: null`` is the end: silence is a break."""
        wanted, circle = {"limit": str(self._config.page_size), **params}, Circle()
        while True:
            answer = self._get(f"/v1/chain/records/{kind}", wanted)
            for item in _items(answer):
                yield observation(item)
            after = answer.get("next_cursor", "")
            if after is None:
                return
            if not isinstance(after, str) or after == "" or circle.closes(after):
                raise RemoteRefused(f"/v1/chain/records/{kind} does not say how to go on.", status=200)
            wanted["cursor"] = after

    def _call(self, path: str, params: Mapping[str, str] | None = None) -> HttpResponse:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token.get_secret_value()}"}
        return self._http.request(
            "GET",
            self._config.base_url + path,
            headers=headers,
            params=params,
            allow_http_private=self._config.allow_http_private,
        )

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Json]:
        return _object(self._call(path, params), path)


def _object(response: HttpResponse, path: str) -> dict[str, Json]:
    """The answer's object; RemoteRefused for anything else."""
    if response.status != 200:
        raise RemoteRefused(f"{path} was answered with {response.status}.", status=response.status)
    content = response.json()
    if not isinstance(content, dict):
        raise RemoteRefused(f"{path} was answered with something that is no object.", status=response.status)
    return content


def _items(answer: Mapping[str, Json]) -> Sequence[Json]:
    items = answer.get("items")
    if not isinstance(items, list):
        raise RemoteRefused("The tier below answered without items.", status=200)
    return items
