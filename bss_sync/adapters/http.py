"""The one outbound HTTP client (architecture.md, decision 8): ``ports.http.HttpClient`` over requests and tenacity.

Nothing here logs: addresses, headers and bodies may hold secrets and personal data. Errors name the method, the host
and the path, never a query, a header or a body.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from bss_sync.adapters.http_connections import CURRENT, POOLS, Attempt, Resolve, resolve_with_system
from bss_sync.domain.errors import (
    ConfigurationError,
    DependencyDown,
    RemoteBusy,
    RemoteDenied,
    RemoteRefused,
    RemoteUnknown,
    Transient,
)
from bss_sync.ports.http import HttpResponse

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ANSWERS = frozenset({404, 409, 410})
"""Statuses beside 2xx that mean something to the caller."""
BUSY = frozenset({429, 503})
"""The remote asks us to wait: nothing more is sent until then."""
DENIED = frozenset({401, 403})
"""The remote does not take who is calling, whatever is being said."""
PASSING = frozenset({408, 421, 423, 425})
"""Below 500, and yet about this call and not about what it says: a request that came too slowly (408), on a connection
of another host (421), to a thing that is locked (423), too early in a handshake (425). 500 and above pass too."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_METHOD_KEEPING_REDIRECTS = frozenset({307, 308})
_REDIRECTS_MAX = 3
_TRIES_MAX = 3
_RETRY_AFTER_SECONDS_MAX = 86_400.0
_CHUNK_BYTES = 64 * 1024


class RetryBudget:
    """Keeps in-call retries below a tenth of the calls to a host, for callers without a budget that workers share.

    Each call earns a tenth of a retry, ten are kept at most, and the first two are lent. Thread-safe.
    """

    _EARNED = 0.1
    _KEPT_MAX = 10.0
    _LENT = 2.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credit: dict[str, float] = {}

    def earn(self, host: str) -> None:
        """A call to ``host`` begins."""
        with self._lock:
            self._credit[host] = min(self._credit.get(host, self._LENT) + self._EARNED, self._KEPT_MAX)

    def spend(self, host: str) -> bool:
        """Whether one more retry is affordable; it is then paid."""
        with self._lock:
            credit = self._credit.get(host, self._LENT)
            if credit < 1:
                return False
            self._credit[host] = credit - 1
            return True


class _PinnedAdapter(HTTPAdapter):
    """requests' transport over our own connections, used without a session: no cookies, no netrc, no proxies."""

    def __init__(self) -> None:
        super().__init__(pool_connections=64, pool_maxsize=32)
        self.poolmanager.pool_classes_by_scheme = POOLS


class RequestsHttpClient:
    """See ``HttpClient``. Thread-safe; one per process is enough.

    ``total_seconds`` bounds a whole call with its retries, also against an answer that drips. ``ca_file``: trusted
    certificates instead of the usual ones. ``resolve``: the resolver, replaceable for tests.
    """

    def __init__(
        self,
        *,
        connect_seconds: float = 5,
        read_seconds: float = 20,
        total_seconds: float = 60,
        body_bytes_max: int = 32 * 1024 * 1024,
        retry_wait_seconds_max: float = 1.0,
        ca_file: str | None = None,
        resolve: Resolve = resolve_with_system,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._total_seconds = total_seconds
        self._body_bytes_max = body_bytes_max
        self._retry_wait_seconds_max = retry_wait_seconds_max
        self._verify: bool | str = ca_file or True
        self._resolve = resolve
        self._budget = RetryBudget()
        # Kept apart, so that a connection to a private address never serves a call that must not reach it.
        self._adapters = {False: _PinnedAdapter(), True: _PinnedAdapter()}

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
        """See ``HttpClient.request``. ConfigurationError for an address that may not be called."""
        own = {"User-Agent": "bss-sync", "Accept": "application/json", "Accept-Encoding": "gzip"}
        if idempotency_key is not None:
            own["Idempotency-Key"] = idempotency_key
        try:
            prepared = requests.Request(
                method.upper(),
                url,
                headers={**own, **(headers or {})},
                params=params,
                json=json,
                data=form if body is None else body,
                auth=auth,
            ).prepare()
        except (requests.RequestException, ValueError) as error:
            # Not the error's own text: it may quote a header.
            raise ConfigurationError(f"base_url: no request can be made ({type(error).__name__}).") from None
        _check_scheme(prepared, allow_http_private)
        deadline = time.monotonic() + self._total_seconds
        if end_by is not None:
            deadline = min(deadline, end_by)
        return self._call(prepared, idempotency_key is not None, allow_http_private, may_retry, deadline)

    def close(self) -> None:
        """Close every pooled connection."""
        for adapter in self._adapters.values():
            adapter.close()

    def _call(
        self,
        prepared: requests.PreparedRequest,
        idempotent: bool,
        private: bool,
        affordable: Callable[[Transient], bool] | None,
        deadline: float,
    ) -> HttpResponse:
        """Try, and try again where that is harmless."""
        host = urlsplit(prepared.url or "").netloc
        repeatable = idempotent or prepared.method in _SAFE
        lost: list[RemoteUnknown] = []

        def may_retry(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RemoteUnknown):
                lost.append(error)
            if not isinstance(error, Transient):
                return False
            # Told of every try that failed, also of those that are not repeated.
            allowed = affordable is None or affordable(error)
            # A remote that asked to wait is obeyed by whoever keeps the retry time, not here.
            return (
                allowed
                and not isinstance(error, RemoteBusy | RemoteDenied)
                and repeatable
                and state.attempt_number < _TRIES_MAX
                and time.monotonic() + self._retry_wait_seconds_max < deadline
                and (affordable is not None or self._budget.spend(host))
            )

        retrying = tenacity.Retrying(
            retry=may_retry,
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=self._retry_wait_seconds_max),
            reraise=True,
        )
        self._budget.earn(host)
        try:
            return retrying(self._follow, prepared, deadline, private)
        except RemoteUnknown:
            raise
        except Transient as error:
            if lost:
                # An earlier try may have taken effect, whatever became of the later ones.
                raise RemoteUnknown(lost[0].detail, retry_after_seconds=error.retry_after_seconds) from error
            raise

    def _follow(self, prepared: requests.PreparedRequest, deadline: float, private: bool) -> HttpResponse:
        """One try, with redirects on the same origin; every other answer becomes a response or an error."""
        response = self._exchange(prepared, deadline, private)
        for _ in range(_REDIRECTS_MAX):
            if response.status not in _REDIRECTS:
                break
            prepared = _redirected(prepared, response)
            response = self._exchange(prepared, deadline, private)
        return _judge(prepared, response)

    def _exchange(self, prepared: requests.PreparedRequest, deadline: float, private: bool) -> HttpResponse:
        """Send one request and read the whole answer."""
        attempt = Attempt(deadline, self._read_seconds, private, self._resolve)
        token = CURRENT.set(attempt)
        try:
            attempt.seconds_left()
            response = self._adapters[private].send(
                prepared,
                stream=True,
                timeout=(self._connect_seconds, self._read_seconds),
                verify=self._verify,
            )
            try:
                body = self._read(prepared, response)
            finally:
                response.close()
            headers = {name.lower(): value for name, value in response.headers.items()}
            return HttpResponse(response.status_code, headers, body)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise _lost(prepared, attempt, error) from error
        finally:
            CURRENT.reset(token)

    def _read(self, prepared: requests.PreparedRequest, response: requests.Response) -> bytes:
        body = bytearray()
        # read1 gives what has arrived; read would wait for a whole chunk, however slowly it comes.
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > self._body_bytes_max:
                detail = f"{_name(prepared)}: the answer is larger than {self._body_bytes_max} bytes."
                if prepared.method in _SAFE:
                    raise RemoteRefused(detail, status=response.status_code)
                raise RemoteUnknown(detail)
        return bytes(body)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """The wish of a Retry-After header (RFC 9110): seconds or a date. None when there is none or it is unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else (_http_date(value) - now).total_seconds()
    except ValueError:
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_SECONDS_MAX)


def _moment_of(response: HttpResponse) -> datetime:
    """When it was answered, by the remote's own clock where it says so: it is the clock that its dates are meant by."""
    try:
        return _http_date(response.headers["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def _http_date(value: str) -> datetime:
    moment = parsedate_to_datetime(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_scheme(prepared: requests.PreparedRequest, private: bool) -> None:
    scheme = urlsplit(prepared.url or "").scheme
    if scheme not in ("http", "https"):
        raise ConfigurationError(f"base_url: {scheme!r} addresses cannot be called; use https.")
    if scheme == "http" and not private:
        raise ConfigurationError("allow_http_private: http is permitted only when it is true; use https.")


def _judge(prepared: requests.PreparedRequest, response: HttpResponse) -> HttpResponse:
    """The response, or the error that its status stands for."""
    status = response.status
    if 200 <= status < 300 or status in _ANSWERS:
        return response
    detail = f"{_name(prepared)} was answered with {status}."
    wish = retry_after_seconds(response.headers.get("retry-after"), _moment_of(response))
    if status in BUSY:
        raise RemoteBusy(detail, retry_after_seconds=wish)
    if status in DENIED:
        raise RemoteDenied(detail, retry_after_seconds=wish)
    if status in PASSING or status >= 500:
        raise Transient(detail, retry_after_seconds=wish)
    raise RemoteRefused(detail, status=status)


def _redirected(prepared: requests.PreparedRequest, response: HttpResponse) -> requests.PreparedRequest:
    """The same request at the address that a redirect names; RemoteRefused when it leads elsewhere."""
    status = response.status
    here = urlsplit(prepared.url or "")
    try:
        there = urlsplit(urljoin(prepared.url or "", response.headers.get("location", "")))
        same_origin = (there.scheme, there.hostname, there.port) == (here.scheme, here.hostname, here.port)
    except ValueError:
        same_origin = False
        there = here
    if not same_origin or "location" not in response.headers:
        raise RemoteRefused(f"{_name(prepared)} redirects to another place, which is not followed.", status=status)
    if prepared.method not in _SAFE and status not in _METHOD_KEEPING_REDIRECTS:
        raise RemoteRefused(f"{_name(prepared)} asks for another method by redirecting ({status}).", status=status)
    # Written with the first address's own host and port, so that user names in a redirect never count.
    again = prepared.copy()
    again.url = there._replace(netloc=here.netloc, fragment="").geturl()
    return again


def _lost(prepared: requests.PreparedRequest, attempt: Attempt, error: Exception) -> Transient:
    """The error of a call without a whole answer. What counts is whether anything was sent before."""
    detail = f"{_name(prepared)}: {_cause(error)}."
    if not attempt.sent:
        return DependencyDown(detail)
    if prepared.method in _SAFE:
        return Transient(detail)
    return RemoteUnknown(detail)


def _cause(error: BaseException) -> str:
    """What went wrong, in words of the innermost error. Only the system's words: others may quote the answer."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = (error.strerror or str(error)) if isinstance(error, OSError) else ""
    return f"{type(error).__name__} ({text})" if text else type(error).__name__


def _name(prepared: requests.PreparedRequest) -> str:
    """Method, host and path."""
    address = urlsplit(prepared.url or "")
    return f"{prepared.method} {address.hostname}{address.path}"
