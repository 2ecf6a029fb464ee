"""Where the service may send what customers ask it to: to public addresses, and to what the operator has named.

A customer names a host, and whoever keeps its name says which address that is, another one each time if he likes. So
it is addresses that are judged, all that a name has, and it is a judged address that is connected to: what is asked
here is given to the connection as it is, and never looked up again.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import urlsplit

from bpt_store.errors import Invalid
from bpt_store.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str], Sequence[str]]
PORTS = {"http": 80, "https": 443}

_LONGEST = 2_048
_NAME = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# Beside what Python calls private: protocol assignments (among them Oracle's metadata), 6to4's relays, and Azure's own
# address on each of its hosts.
_NOT_PUBLIC = [ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]
_GLOBAL_IPV6 = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


def look_up(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


@dataclass(frozen=True)
class Target:
    """A URL in its parts; `host` without brackets, `path` with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Invalid `webhook_url_forbidden` for what has no host, or what others might read in another way."""
        if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or any(c in url for c in '\\ #<>"{}|^`'):
            raise forbidden("it must be plain ASCII of at most 2048 characters, without a fragment")
        try:
            scheme, place, path, query, _ = urlsplit(url)
            host, port = urlsplit(url).hostname or "", urlsplit(url).port
            if place.startswith("["):
                IPv6Address(host)
        except ValueError:
            raise forbidden("it is no URL") from None
        if scheme not in PORTS:
            raise forbidden("it must begin with https://")
        if "@" in place:
            raise forbidden("it must not carry a user or a password; check the signature instead")
        if port == 0 or not (place.startswith("[") or _NAME.fullmatch(host)):
            raise forbidden("it names no host")
        return cls(
            scheme, host, PORTS[scheme] if port is None else port, (path or "/") + (f"?{query}" if query else "")
        )


@dataclass(frozen=True)
class Outside:
    """What lies outside, as the operator has allowed it. `resolve` gives the addresses of a name, OSError for none."""

    networks: Sequence[Network] = ()
    insecure: bool = False
    resolve: Resolve = look_up

    @classmethod
    def of(cls, settings: Settings) -> Self:
        networks = [ip_network(each) for each in settings.webhook_allowed_networks.split()]
        return cls(networks, settings.webhook_insecure)

    def check(self, url: str) -> None:
        """Invalid `webhook_url_forbidden` for what would not be sent to."""
        target = Target.parse(url)
        self.check_scheme(target)
        self.addresses(target.host)

    def check_scheme(self, target: Target) -> None:
        if target.scheme != "https" and not self.insecure:
            raise forbidden("it must begin with https://")

    def addresses(self, host: str) -> list[str]:
        """Where a host may be connected to. Invalid `webhook_url_forbidden` if any of its addresses may not be.

        Which address that is, is not told: a name is no way to find out what there is in our network.
        """
        try:
            found = self.resolve(host)
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise forbidden("its host has no address")
        if not all(self._allows(ip_address(each)) for each in found):
            raise forbidden("its host has an address that is not public")
        return list(found)

    def _allows(self, address: Address) -> bool:
        meant = _meant(address)
        return _is_public(meant) or any(meant in network for network in self.networks)


def forbidden(why: str) -> Invalid:
    return Invalid(f"nothing is sent to this URL: {why}", code="webhook_url_forbidden")


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address may stand for."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return False
    return address.is_global and not address.is_multicast and not any(address in each for each in _NOT_PUBLIC)
