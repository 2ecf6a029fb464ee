"""Which URLs and addresses the service sends to, and which it never does."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from pydantic import ValidationError

from bpt_store.addresses import Outside, Target
from bpt_store.errors import Invalid
from bpt_store.settings import Settings

PUBLIC = ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2002:5db8:d822::1")
NOT_PUBLIC = (
    *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
    *("169.254.169.254", "192.0.0.192", "168.63.129.16", "100.100.100.200", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "192.0.2.1", "192.88.99.1"),
    *("::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("2001:db8::1", "2001::1", "64:ff9b:1::1", "100::1"),
    # IPv4 inside: mapped, 6to4, NAT64
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
)


def outside(*addresses: str, networks: tuple[str, ...] = (), insecure: bool = False) -> Outside:
    return Outside([ip_network(each) for each in networks], insecure, lambda _: addresses)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_sent_to(address: str) -> None:
    assert outside(address).addresses("example.com") == [address]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_other_address_may_be_sent_to(address: str) -> None:
    with pytest.raises(Invalid, match="not public") as refused:
        outside(address).check("https://example.com/hook")
    assert refused.value.code == "webhook_url_forbidden"
    assert address not in str(refused.value)


def test_a_name_is_refused_for_any_of_its_addresses() -> None:
    with pytest.raises(Invalid):
        outside(PUBLIC[0], "10.0.0.1", PUBLIC[1]).check("https://example.com")


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_a_network_that_the_operator_has_named_may_be_sent_to(address: str) -> None:
    outside(address, networks=("10.1.0.0/16",)).check("https://example.com")
    with pytest.raises(Invalid):
        outside(address, "10.2.0.0", networks=("10.1.0.0/16",)).check("https://example.com")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_however_loopback_is_spelled_it_is_refused(host: str) -> None:
    with pytest.raises(Invalid, match="not public"):
        Outside().check(f"https://{host}/")


def test_a_name_without_an_address_is_refused() -> None:
    def nobody(_: str) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(Invalid, match="no address"):
        Outside(resolve=nobody).check("https://example.com")


def test_only_https_unless_the_operator_has_said_so() -> None:
    outside(PUBLIC[0], insecure=True).check("http://example.com")
    for url in ("http://example.com", "HTTP://example.com"):
        with pytest.raises(Invalid, match="https://"):
            outside(PUBLIC[0]).check(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com", "https://", "https:example.com", "https:///path", "ftp://example.com"),
        *(
            "file:///etc/passwd",
            "https://user@example.com",
            "https://user:password@example.com",
            "https://@example.com",
        ),
        *(
            "https://example.com#fragment",
            "https://example.com\\@127.0.0.1",
            "https://exa mple.com",
            "https://bücher.de",
        ),
        *("https://example.com/\n", "https://example.com/\x00", "https://example.com:99999", "https://example.com:x"),
        *("https://example.com:0", "https://[::1", "https://[example.com]", "https://-%61.com", "https://a..b"),
        *("https://example.com/" + "a" * 2_048, "https://" + "a" * 64 + ".com", "https://example.com."),
    ],
)
def test_what_is_no_plain_url_of_a_host_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as refused:
        outside(PUBLIC[0], insecure=True).check(url)
    assert refused.value.code == "webhook_url_forbidden"


def test_a_url_is_taken_apart_as_it_is_sent() -> None:
    assert Target.parse("https://Example.com") == Target("https", "example.com", 443, "/")
    assert Target.parse("https://example.com:8443/a%20b?c=d&e=%2F") == Target(
        "https", "example.com", 8443, "/a%20b?c=d&e=%2F"
    )
    assert Target.parse("http://[2606:2800::1]:80?a") == Target("http", "2606:2800::1", 80, "/?a")


def test_networks_that_are_none_are_refused_at_the_start(settings: Settings) -> None:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    with pytest.raises(ValidationError, match="webhook_allowed_networks"):
        Settings(**{**given, "webhook_allowed_networks": "10.0.0.0/8 intranet"})
