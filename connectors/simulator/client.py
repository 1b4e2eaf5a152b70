"""Calls to the simulated BSS: as a reseller's source, and as the distributor's target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from urllib.parse import quote

from pydantic import SecretStr

from bss_sync.domain.change import Json, Kind
from bss_sync.domain.circles import Circle
from bss_sync.domain.errors import RemoteRefused, Transient
from bss_sync.ports.connector import Answer, Observation, Page, TargetRecord, TargetWrite
from bss_sync.ports.http import HttpClient, HttpResponse
from connectors.simulator.config import SimulatorConfig
from connectors.simulator.mapper import observation, target_record

_PATHS: Mapping[Kind, str] = {Kind.ACCOUNT: "/accounts", Kind.SUBSCRIPTION: "/subscriptions"}


class _Api:
    """What both clients share: the address, the key, and reading pages to their end."""

    def __init__(self, config: SimulatorConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> None:
        self.config = config
        self._http = http
        self._key = secrets.get("api_key")

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Json = None,
        idempotency_key: str | None = None,
    ) -> HttpResponse:
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        return self._http.request(
            method,
            self.config.base_url + path,
            headers=headers,
            params=params,
            json=json,
            idempotency_key=idempotency_key,
            allow_http_private=self.config.allow_http_private,
        )

    def get(self, path: str, members: tuple[str, ...], params: Mapping[str, str] | None = None) -> dict[str, Json]:
        """A GET whose answer is an object with ``members``. Transient when one is missing: something was cut off."""
        return _whole(self.call("GET", path, params=params), path, members)

    def pages(self, path: str) -> Iterator[Sequence[Mapping[str, Json]]]:
        """Every page of a listing. Only an explicit ``next: null`` is its end: silence is a break."""
        after: str | None = ""
        circle = Circle()
        while after is not None:
            if circle.closes(after):
                raise Transient(f"{path} does not advance: its pages lead back.")
            page = self.get(path, ("items", "next"), {"after": after, "limit": str(self.config.page_size)})
            yield page["items"]
            after = page["next"]

    def check(self) -> str:
        """Prove address and key with the health route."""
        health = self.get("/health", ("status",))
        return f"{health.get('name', 'simulator')}: " + ", ".join(
            f"{health[name]} {name}" for name in ("accounts", "subscriptions", "records") if name in health
        )


class SimulatorSource:
    """The simulated reseller BSS, asked."""

    def __init__(self, config: SimulatorConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> None:
        self._api = _Api(config, secrets, http)
        self._order = config.order

    def check(self) -> str:
        """See SourceClient."""
        return self._api.check()

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        """See SourceClient. 404: never heard of; 410: gone, with its last version."""
        response = self._api.call("GET", f"{_PATHS[kind]}/{quote(source_id, safe='')}")
        if response.status == 404:
            return None
        seen = observation(kind, _object(response, _PATHS[kind], 200, 410), self._order)
        if seen.source_id != source_id:
            raise RemoteRefused(f"{_PATHS[kind]} answered with another entity.", status=response.status)
        return seen

    def list_all(self) -> Iterator[Observation]:
        """See SourceClient. Raises Transient when the listing breaks off."""
        cursor, more, circle = None, True, Circle()
        while more:
            if circle.closes(cursor):
                raise Transient("The listing does not advance: its pages lead back.")
            page = self.list_page(cursor)
            yield from page.observations
            cursor, more = page.cursor, page.more

    def list_page(self, cursor: str | None) -> Page:
        """See PagedSource. The cursor is the kind and the last id: whoever lives all the while is on some page."""
        answer = self.answer_page(cursor)
        following = answer.following()
        return Page(answer.read(), following, more=following is not None)

    def answer_page(self, cursor: str | None) -> Answer:
        """See AnsweringSource."""
        word, _, after = (cursor or f"{Kind.ACCOUNT}:").partition(":")
        kind = Kind(word)
        limit = str(self._api.config.page_size)
        response = self._api.call("GET", _PATHS[kind], params={"after": after, "limit": limit})
        # Read once, by whoever asks first; not at all where the digest says enough.
        content = cache(lambda: _page(response, _PATHS[kind]))

        def following() -> str | None:
            # Only an explicit ``next: null`` is the end of a kind: silence is a break.
            after = content()["next"]
            if after is not None:
                return f"{kind}:{after}"
            # The cursor of the end is kept too: nobody who goes on there reads anything again.
            return f"{Kind.SUBSCRIPTION}:" if kind is Kind.ACCOUNT else None

        def read() -> list[Observation]:
            return [observation(kind, record, self._order) for record in content()["items"]]

        digest = sha256(b"%d " % response.status)
        digest.update(response.body)
        return Answer(digest.digest(), following, read)

    def poll(self, cursor: str | None) -> Page:
        """See SourceClient. The feed holds every change with its state at that time."""
        params = {"cursor": cursor or "0", "limit": str(self._api.config.page_size)}
        feed = self._api.get("/changes", ("changes", "cursor", "more"), params)
        observations = [observation(Kind(change["kind"]), change["record"], self._order) for change in feed["changes"]]
        return Page(observations, feed["cursor"], feed["more"])


class SimulatorTarget:
    """The simulated distributor BSS, written to."""

    def __init__(self, config: SimulatorConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> None:
        self._api = _Api(config, secrets, http)

    def check(self) -> str:
        """See TargetClient."""
        return self._api.check()

    def look_up(self, kind: Kind, reference: str) -> TargetRecord | None:
        """See TargetClient. Should two carry the reference, the older one is meant."""
        found = self._api.get("/records", ("items",), {"kind": str(kind), "reference": reference})["items"]
        return target_record(found[0]) if found else None

    def write(self, write: TargetWrite) -> TargetRecord:
        """See TargetClient. RemoteRefused when the record that we know is gone or the key was used otherwise."""
        if write.external_id is None:
            method, path = "POST", "/records"
            content: Json = {"kind": str(write.kind), "reference": write.reference, "fields": dict(write.fields)}
        else:
            method, path = "PUT", f"/records/{quote(write.external_id, safe='')}"
            content = {"fields": dict(write.fields)}
        response = self._api.call(method, path, json=content, idempotency_key=write.idempotency_key)
        return target_record(_object(response, path))

    def changes(self, cursor: str | None) -> tuple[Sequence[TargetRecord], str | None, bool]:
        """See TargetClient. Each changed record once, as it is now."""
        params = {"cursor": cursor or "0", "limit": str(self._api.config.page_size)}
        feed = self._api.get("/record-changes", ("items", "cursor", "more"), params)
        return _referenced(feed["items"]), feed["cursor"], feed["more"]

    def list_all(self) -> Iterator[TargetRecord]:
        """See TargetClient. Raises Transient when the listing breaks off."""
        for page in self._api.pages("/records"):
            yield from _referenced(page)


def _referenced(records: Sequence[Mapping[str, Json]]) -> list[TargetRecord]:
    return [target_record(record) for record in records if record.get("reference")]


def _page(response: HttpResponse, path: str) -> dict[str, Json]:
    return _whole(response, path, ("items", "next"))


def _whole(response: HttpResponse, path: str, members: tuple[str, ...]) -> dict[str, Json]:
    content = _object(response, path)
    missing = [name for name in members if name not in content]
    if missing:
        raise Transient(f"{path} broke off: the answer has no {', '.join(missing)}.")
    return content


def _object(response: HttpResponse, path: str, *accepted: int) -> dict[str, Json]:
    """The answer's object; RemoteRefused for a status that is no success here (404, 409, 410 come as answers)."""
    if response.status not in (accepted or (200, 201)):
        raise RemoteRefused(f"{path} was answered with {response.status}.", status=response.status)
    content = response.json()
    if not isinstance(content, dict):
        raise RemoteRefused(f"{path} was answered with something that is no object.", status=response.status)
    return content
