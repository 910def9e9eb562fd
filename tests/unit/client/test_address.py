"""Where a server is, and which key it gets."""

from __future__ import annotations

import pytest

from samserve_client.address import Address, address_of


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAMSERVE_URL", "SAMSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (None, Address("http://127.0.0.1:8000", None)),
        ("http://host:9000/", Address("http://host:9000", None)),
        ("host:9000", Address("http://host:9000", None)),
        (" https://host ", Address("https://host", None)),
        ("http://host/sam/", Address("http://host", None)),
        ("http://host/sam", Address("http://host", None)),
        ("https://host/tools/samserve/sam/", Address("https://host/tools/samserve", None)),
        ("http://host/key/abc-1/sam/", Address("http://host", "abc-1")),
        ("http://host/key/abc-1/", Address("http://host", "abc-1")),
        ("http://[::1]:8000", Address("http://[::1]:8000", None)),
        ("http://user:secret@host:1/x?y=1", Address("http://host:1/x", None)),
    ],
)
def test_addresses(url: str | None, address: Address) -> None:
    assert address_of(url, None) == address


def test_the_environment_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_URL", "http://there:1")
    monkeypatch.setenv("SAMSERVE_API_KEY", "of-the-environment")
    assert address_of(None, None) == Address("http://there:1", "of-the-environment")
    assert address_of("http://here", "mine") == Address("http://here", "mine")
    assert address_of("http://here/key/in-path/sam/", None).key == "in-path"
    monkeypatch.setenv("SAMSERVE_URL", "")
    assert address_of(None, None).url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http:///sam/", "http://host:port", "http://host:99999999"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="server's address"):
        address_of(url, None)


@pytest.mark.parametrize("key", ["two words", "new\nline", "schlüssel", "\0"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="API key must be") as raised:
        address_of("http://host", key)
    assert key not in str(raised.value)


def test_no_message_has_a_secret() -> None:
    assert "abc" not in repr(address_of("http://host/key/abc/sam/", None))
    with pytest.raises(ValueError, match="address") as raised:
        address_of("ftp://user:pass@host/key/abc/", None)
    assert "abc" not in str(raised.value)
    assert "pass" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1", True),
        ("http://127.9.9.9", True),
        ("http://[::1]", True),
        ("http://localhost:1", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert address_of(url, None).is_loopback is loopback
