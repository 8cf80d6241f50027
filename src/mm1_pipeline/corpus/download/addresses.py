"""Which addresses may be asked: a list from the web must not reach into this network."""

from __future__ import annotations

import ipaddress
import socket

import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from kedro_rerun.errors import without_secrets

from mm1_pipeline.corpus.download.failures import Failed, Failure

_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by customers of a provider; metadata of one cloud
        "127.0.0.0/8",  # this machine
        "168.63.129.16/32",  # not in the registry: one cloud's own service, asked by its machines
        "169.254.0.0/16",  # this link; metadata of most clouds
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments; metadata of one cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, given up
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # measurements
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
"""IANA's registry of special-purpose IPv4 addresses (RFC 6890), and multicast."""
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, with Teredo, measurements, identifiers of hosts
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, given up; it carries any IPv4 address
        "3fff::/20",  # documentation
    )
)
"""What IANA's registry takes out of the global unicast addresses; nothing outside is asked."""
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""The upper half of an interface's name whose lower half is an IPv4 address (RFC 5214)."""


class PrivateAddressError(OSError):
    """A name that leads to this machine or its networks."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet.

    What IANA's registries of special-purpose addresses do not call globally reachable is refused,
    and likewise what carries such an IPv4 address inside: mapped, by NAT64 or by ISATAP.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in _REFUSED_IPV4)
    inside = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    if found in _MAPPED or found in _NAT64:
        return is_public(str(inside))
    if found not in _GLOBAL_UNICAST or any(found in network for network in _REFUSED_IPV6):
        return False
    is_isatap = int(found) >> 32 & 0xFFFF_FFFF in _ISATAP
    return not is_isatap or is_public(str(inside))


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
        raise Failed(Failure.URL_INVALID, without_secrets(str(error))) from None
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
