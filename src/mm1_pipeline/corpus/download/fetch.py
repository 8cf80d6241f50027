"""Fetches one image at a time from each of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver
from kedro_rerun.errors import without_secrets

from mm1_pipeline.config.download import DownloadConfig, FetchLimits
from mm1_pipeline.corpus.download.addresses import (
    CheckedResolver,
    PrivateAddressError,
    parse_url,
)
from mm1_pipeline.corpus.download.failures import Failed, Failure
from mm1_pipeline.corpus.images import (
    FORMAT_SUFFIXES,
    RejectedImage,
    check_image,
    check_url,
    image_format,
)

_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_OK = 200
_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500
_IMAGE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
_UNREACHABLE = frozenset({Failure.NAME_UNKNOWN, Failure.TIMEOUT_CONNECT, Failure.CONNECTION})
"""Failures that say something about the host, where it gave no answer at all."""
_DECODERS = 4
"""Threads that decode; Pillow frees the interpreter meanwhile."""
_BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image as the server sent it, decoded once.

    Attributes:
        data: The encoded image.
        suffix: File name suffix of its format.
        width: In pixels, upright.
        height: Likewise.
    """

    data: bytes
    suffix: str
    width: int
    height: int


class Fetcher:
    """Fetches images within the limits; use it as an asynchronous context.

    Args:
        config: Limits, image rules, what servers are told.
        resolver: Asks the name service; what it answers is checked unless private addresses are
            allowed.
    """

    def __init__(self, config: DownloadConfig, resolver: AbstractResolver | None = None) -> None:
        self._config, self._limits = config, config.limits
        self._resolver = resolver
        self._hosts = _Hosts(config.limits)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Fetcher:
        if not self._limits.allow_private_addresses:
            self._resolver = CheckedResolver(self._resolver)
        connector = aiohttp.TCPConnector(
            limit=self._config.concurrency,
            limit_per_host=self._limits.connections_per_host,
            resolver=self._resolver,
            ttl_dns_cache=300,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": self._config.user_agent,
                "Accept": "image/*",
                # Images are compressed already, and what is not unpacked cannot explode.
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=self._limits.total_seconds, connect=self._limits.connect_seconds
            ),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str | None) -> FetchedImage:
        """Fetches one image, with further tries where that may help.

        Raises:
            Failed: with the reason.
        """
        if not url or not url.strip():
            raise Failed(Failure.URL_MISSING)
        try:
            check_url(url, self._config.images)
            return await self._decode(await self._get_patiently(url))
        except RejectedImage as error:
            raise Failed(error.reason, error.detail) from None

    async def _get_patiently(self, url: str) -> bytes:
        earlier: Failed | None = None
        for attempt in itertools.count():
            try:
                return await self._get(url)
            except Failed as error:
                if error.reason == Failure.HOST_RETIRED and earlier is not None:
                    raise earlier from None
                if not error.is_passing or attempt == self._limits.num_retries:
                    raise
                earlier = error
                await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
        raise AssertionError("the loop returns or raises")

    async def _get(self, text: str) -> bytes:
        """Follows redirects, each hop checked as if the list had named it."""
        for _ in range(self._limits.max_redirects + 1):
            url = parse_url(text, allow_private=self._limits.allow_private_addresses)
            # First the host's turn, then a slot: who waits for a slow host holds up no other.
            async with self._hosts.turn(url.host or "", url.authority) as visit, self._slots:
                found = await self._request(url, visit)
            if isinstance(found, bytes):
                return found
            text = found
        raise Failed(Failure.TOO_MANY_REDIRECTS, f"allowed {self._limits.max_redirects}")

    async def _request(self, url: yarl.URL, visit: _Visit) -> bytes | str:
        """The body, or where the server redirects to."""
        assert self._session is not None, "used outside of its context"
        with _named_errors():
            async with self._session.get(url, allow_redirects=False) as response:
                visit.was_answered = True
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return str(url.join(yarl.URL(location)))
                self._check_headers(response)
                return await self._read(response)

    def _check_headers(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status != _OK:
            passing = status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR
            raise Failed(Failure.HTTP_STATUS, f"found {status}", is_passing=passing)
        tags = response.headers.getall("X-Robots-Tag", [])
        if word := _opted_out(tags, self._config.opt_out_directives):
            raise Failed(Failure.OPTED_OUT, f"found {word!r} in X-Robots-Tag")
        kind = response.headers.get("Content-Type", "").strip().lower()
        if kind and not kind.startswith(_IMAGE_TYPES):
            raise Failed(Failure.CONTENT_TYPE, f"found {kind[:100]!r}, expected an image")
        if (found := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise Failed(Failure.HTTP_PROTOCOL, f"found Content-Encoding {found[:50]!r}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._limits.max_bytes
        if (response.content_length or 0) > limit:
            found = f"found {response.content_length} bytes, allowed {limit}"
            raise Failed(Failure.TOO_MANY_BYTES, found)
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                response.close()
                raise Failed(Failure.TOO_MANY_BYTES, f"found more than {limit} bytes, allowed")
        return bytes(body)

    async def _decode(self, data: bytes) -> FetchedImage:
        loop = asyncio.get_running_loop()
        rules = self._config.images
        size = await loop.run_in_executor(self._decoders, check_image, data, rules)
        return FetchedImage(data, FORMAT_SUFFIXES[image_format(data)][0], *size)


@dataclass
class _Host:
    """A host that is being asked."""

    free: asyncio.Semaphore
    users: int = 0
    next_start: float = 0.0
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Visit:
    """One request to a host."""

    was_answered: bool = False


class _Hosts:
    """Lets few requests at a time to each host, with a pause between their starts."""

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self._hosts: dict[str, _Host] = {}
        self._failures: Counter[str] = Counter()

    def is_retired(self, server: str) -> bool:
        """Whether a server has failed so often in a row that it is left for this run."""
        return self._failures[server] >= self._limits.host_failures

    @contextlib.asynccontextmanager
    async def turn(self, name: str, server: str) -> AsyncIterator[_Visit]:
        """Waits until the host may be asked, and notes whether it could be reached.

        Args:
            name: the host's, which is asked slowly whatever its ports.
            server: host and port, whose failures are counted.

        Raises:
            Failed: the server is retired.
        """
        host = self._hosts.get(name)
        if host is None:
            self._forget_idle()
            host = _Host(asyncio.Semaphore(self._limits.connections_per_host))
            self._hosts[name] = host
        host.users += 1
        try:
            async with host.free:
                async with host.starting:
                    self._check_retired(server)
                    await asyncio.sleep(max(0.0, host.next_start - time.monotonic()))
                    host.next_start = time.monotonic() + self._limits.host_delay_seconds
                visit = _Visit()
                try:
                    yield visit
                    self._failures.pop(server, None)
                except Failed as error:
                    is_dead = error.reason in _UNREACHABLE and not visit.was_answered
                    if is_dead or error.reason == Failure.TIMEOUT_TOTAL:
                        self._failures[server] += 1
                    else:
                        self._failures.pop(server, None)
                    raise
        finally:
            host.users -= 1

    def _check_retired(self, server: str) -> None:
        if self.is_retired(server):
            found = f"{server} failed {self._failures[server]} times in a row"
            raise Failed(Failure.HOST_RETIRED, found)

    def _forget_idle(self) -> None:
        """Drops hosts that may be asked at once anyway, so that memory does not grow."""
        if len(self._hosts) < 1_000 or len(self._hosts) % 100:
            return
        now = time.monotonic()
        idle = [n for n, host in self._hosts.items() if not host.users and host.next_start < now]
        for name in idle:
            del self._hosts[name]


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Turns what the library raises into a reason that gives away no secret of an address."""
    try:
        with _library_errors():
            yield
    except Failed as error:
        detail = without_secrets(error.detail)
        raise Failed(error.reason, detail, is_passing=error.is_passing) from None


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise Failed(Failure.TIMEOUT_CONNECT, str(error), is_passing=True) from None
    except TimeoutError as error:
        found = str(error) or "found no end of the answer within total_seconds"
        raise Failed(Failure.TIMEOUT_TOTAL, found, is_passing=True) from None
    except aiohttp.ClientConnectorDNSError as error:
        if isinstance(error.os_error, PrivateAddressError):
            raise Failed(Failure.PRIVATE_ADDRESS, str(error.os_error)) from None
        raise Failed(Failure.NAME_UNKNOWN, str(error.os_error)) from None
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise Failed(Failure.TLS, str(error)) from None
    except aiohttp.InvalidURL as error:
        raise Failed(Failure.URL_INVALID, str(error)) from None
    except aiohttp.ClientResponseError as error:
        raise Failed(Failure.HTTP_PROTOCOL, error.message) from None
    except (aiohttp.ClientError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        raise Failed(Failure.CONNECTION, found, is_passing=True) from None
    except (ValueError, UnicodeError) as error:
        raise Failed(Failure.URL_INVALID, str(error)) from None


def _opted_out(tags: Iterable[str], directives: Iterable[str]) -> str | None:
    """The first directive that forbids collecting; one for a named agent counts as well."""
    unwanted = {directive.lower() for directive in directives}
    for tag in tags:
        for part in tag.lower().split(","):
            word = part.rpartition(":")[2].strip()
            if word in unwanted:
                return word
    return None
