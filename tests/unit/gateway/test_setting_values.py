"""Each setting takes the values that are documented, and says of others what is right."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from samserve_gateway.settings import Settings, problems


def refusal(**variables: str) -> str:
    """Return the one line that is said of these variables."""
    with pytest.raises(ValidationError) as refused:
        Settings.from_environ({f"SAMSERVE_{name}": value for name, value in variables.items()})
    [line] = problems(refused.value)
    return line


def read(**variables: str) -> Settings:
    return Settings.from_environ({f"SAMSERVE_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(("value", "is_open"), [("1", True), ("0", False), ("", False)])
def test_a_switch(value: str, is_open: bool) -> None:
    assert read(OPEN=value).open is is_open


@pytest.mark.parametrize("value", ["yes", "no", "on", "off", "true", "False", "t", "y", "2", "1 "])
def test_a_switch_takes_no_other_word(value: str) -> None:
    assert refusal(OPEN=value) == f"SAMSERVE_OPEN: {value!r} is neither 1 (on) nor 0 (off)"


@pytest.mark.parametrize("value", ["1", "ON", "no", "false", " on"])
def test_tokens_are_on_or_off(value: str) -> None:
    assert "'on' or 'off'" in refusal(TORCHSERVE_TOKENS=value)


@pytest.mark.parametrize("name", ["CORS_ORIGINS", "WEIGHTS_ORIGINS"])
@pytest.mark.parametrize(
    "wrong",
    [
        "example.org",
        "*",
        "ftp://example.org",
        "https://",
        "https://example.org/",
        "https://example.org/page",
        "https://user@example.org",
        "https://example.org:port",
        "https://example.org:70000",
        "https://example.org,https://example.com/",
    ],
)
def test_an_origin_that_is_none_is_named(name: str, wrong: str) -> None:
    line = refusal(**{name: f"https://zenodo.org {wrong}"})
    assert line.startswith(f"SAMSERVE_{name}: {wrong!r} is no origin")
    assert "https://host" in line


def test_several_origins() -> None:
    value = " https://example.org  http://127.0.0.1:3000\nhttp://[::1]:80 "
    assert read(CORS_ORIGINS=value).cors_origins == value


@pytest.mark.parametrize(
    "wrong", ["https://sam.example", "sam.example:443", "sam.example,other", "*", "[::1]"]
)
def test_a_host_that_no_request_could_name(wrong: str) -> None:
    line = refusal(ALLOWED_HOSTS=f"sam.example {wrong}")
    assert line.startswith(f"SAMSERVE_ALLOWED_HOSTS: {wrong!r} is no host name")
    assert read(ALLOWED_HOSTS=" sam.example 10.1.2.3").allowed_hosts == " sam.example 10.1.2.3"


@pytest.mark.parametrize("name", ["INFERENCE_URL", "MANAGEMENT_URL"])
@pytest.mark.parametrize(
    "wrong", ["haproxy:8080", "haproxy", "http://a:8080/x", "http://a:x", "tcp://a:1", "http://a b"]
)
def test_an_address_of_torchserve_that_is_none(name: str, wrong: str) -> None:
    line = refusal(**{name: wrong})
    assert line.startswith(f"SAMSERVE_{name}: {wrong!r} is no address")
    assert "http://host:port" in line


@pytest.mark.parametrize(
    "wrong", ["proxy", "*", "10.1.2.3/16", "10.0.0.0/33", "10.1.2.3 10.1.2.4", "10.1.2.3,"]
)
def test_a_proxy_that_would_never_be_believed(wrong: str) -> None:
    assert refusal(TRUSTED_PROXIES=wrong).startswith("SAMSERVE_TRUSTED_PROXIES: ")


@pytest.mark.parametrize("value", ["10.1.2.3", "10.1.0.0/16, ::1,fd00::/8", ""])
def test_proxies_that_are_believed(value: str) -> None:
    assert read(TRUSTED_PROXIES=value).trusted_proxies == value


@pytest.mark.parametrize(
    "wrong",
    [
        "localhost:6379",
        "http://:hunter2@redis",
        "redis://:hunter2/@redis:6379",
        "redis://:hunter2@redis:port",
        "redis://:hunter2@redis:6379?socket_timeout=hunter2",
    ],
)
def test_a_redis_that_is_none_and_whose_password_is_not_shown(wrong: str) -> None:
    line = refusal(LIMITS_REDIS_URL=wrong)
    assert line.startswith("SAMSERVE_LIMITS_REDIS_URL: ")
    assert "redis://host" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("value", ["redis://redis", "rediss://:x@redis:6380/2", "unix:///run/r.s"])
def test_addresses_of_redis(value: str) -> None:
    url = read(LIMITS_REDIS_URL=value).limits_redis_url
    assert url is not None
    assert url.get_secret_value() == value


@pytest.mark.parametrize("wrong", ["vit_x", "vit_t vit_x", "VIT_T", " ", "vit_t,vit_b"])
def test_model_types_that_do_not_exist_would_never_be_ready(wrong: str) -> None:
    line = refusal(MODELS=wrong, STAND_IN="vit_t")
    assert line.startswith("SAMSERVE_MODELS: ")
    assert "vit_t, vit_b" in line


@pytest.mark.parametrize("name", ["PROMPT_TIMEOUT_S", "AUTOMASK_TIMEOUT_S", "WEIGHTS_TIMEOUT_S"])
@pytest.mark.parametrize("wrong", ["inf", "nan", "0", "-1", "soon", "1e999"])
def test_a_time_is_a_number_above_0(name: str, wrong: str) -> None:
    assert refusal(**{name: wrong}).startswith(f"SAMSERVE_{name}: Input should be ")
