"""Which addresses may be asked: a list from the web must not reach into this network."""

from __future__ import annotations

import ipaddress
import socket

import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from mm1_pipeline.corpus.download.failures import Failed, Failure

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """A name that leads to this machine or its networks."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet.

    Refused are loopback, private, link-local (with the metadata services of clouds), shared,
    reserved and multicast addresses, also where IPv6 carries them inside.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found.sixtofour is not None:
            found = found.sixtofour
        elif found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif found.teredo is not None:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def parse_url(text: str, *, allow_private: bool) -> yarl.URL:
    """Parses an address and refuses what must not be asked.

    Args:
        text: From a list, or where a server redirects to.
        allow_private: Whether this machine and its networks may be asked.

    Raises:
        Failed: It is no HTTP address, carries a password, or names a private address.
    """
    try:
        url = yarl.URL(text.strip())
        host, _ = url.host, url.port
    except (ValueError, TypeError) as error:
        raise Failed(Failure.URL_INVALID, str(error)) from None
    if url.scheme not in ("http", "https"):
        raise Failed(Failure.URL_SCHEME, f"found {url.scheme!r}, expected http or https")
    if not host or url.user or url.password:
        raise Failed(Failure.URL_INVALID, "found no host, or a user name and password")
    if not allow_private and _is_literal(host) and not is_public(host):
        raise Failed(Failure.PRIVATE_ADDRESS, f"found the address {host}")
    return url


class CheckedResolver(AbstractResolver):
    """Resolves names and refuses those with a private address among their addresses.

    The connection is made to the very addresses that were checked here, so a name that answers
    differently the second time (DNS rebinding) gains nothing.

    Args:
        inner: Asks the system's name service by default.
    """

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name.

        Raises:
            PrivateAddressError: One of them is not public.
        """
        found = await self._inner.resolve(host, port, family)
        for address in found:
            if not is_public(address["host"]):
                raise PrivateAddressError(f"{host} leads to the address {address['host']}")
        return found

    async def close(self) -> None:
        """Closes the inner resolver."""
        await self._inner.close()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
