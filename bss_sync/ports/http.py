"""The one outbound HTTP client, as connectors see it (architecture.md, decision 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bss_sync.domain import quick_json
from bss_sync.domain.errors import Transient


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer. ``headers`` have lower-case names; ``body`` is bounded by the client's limit (bytes)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; Terminal RemoteRefused when it is none."""
        from bss_sync.domain.errors import RemoteRefused

        try:
            return quick_json.loads(self.body)
        except ValueError as error:
            raise RemoteRefused(f"The answer is not JSON: {error}", status=self.status) from error


class HttpClient(Protocol):
    """Makes one call and says what happened in our error tree.

    - 2xx and 404, 409 and 410 come back as a response; 429 and 503 raise RemoteBusy with the wish of Retry-After; other
      5xx raise Transient; 401 and 403 raise RemoteDenied; other 4xx raise RemoteRefused.
    - Connection refused or reset before anything was sent raises DependencyDown. A timeout or reset after the request
      was sent raises RemoteUnknown for unsafe methods (the remote may have applied it) and Transient for GET.
    - In-call retries (tenacity) happen only for GET and for requests that carry an ``idempotency_key``.
    - Only https; private and loopback addresses and http only when ``allow_http_private``; the resolved address is
      checked and pinned; a redirect to elsewhere is refused.
    """

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        body: bytes | None = None,
        auth: tuple[str, str] | None = None,
        idempotency_key: str | None = None,
        allow_http_private: bool = False,
        may_retry: Callable[[Transient], bool] | None = None,
        end_by: float | None = None,
    ) -> HttpResponse:
        """One call; times out after bounded seconds for connecting and reading.

        ``may_retry`` is told of each try that failed and says whether another is affordable; None: the client's own
        budget says so.

        ``end_by`` (``time.monotonic()``): the call with its retries is over then, and what the network has not carried
        by then never arrives, also when a cut link comes back.

        ``body`` goes out byte for byte, as a signature needs it; its Content-Type stands in ``headers``.
        """
        ...
