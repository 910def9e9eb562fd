"""Several machines without containers: the README's table of ports, and its commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from samserve_gateway.settings import Settings
from tests.support.deployment import DEPLOY, haproxy_ports, ports_of, worker_ports
from tests.support.redis import free_port, is_up
from tests.support.waiting import wait_for

README = (DEPLOY / "README.md").read_text()
[SECTION] = re.findall(
    r"^### On several machines, without Docker.*?(?=^### )", README, re.MULTILINE | re.DOTALL
)


def block_with(command: str) -> str:
    """Return the code block of the section that has this command."""
    [block] = [
        each for each in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL) if command in each
    ]
    return str(block)


def test_the_firewalls_admit_each_port_and_no_other() -> None:
    rows = dict(
        re.findall(r"^\| (worker|HAProxy|Redis|gateway) \| (.*) \|$", SECTION, re.MULTILINE)
    )
    assert {
        name.lower(): {int(port) for port in re.findall(r"\d+", row)} for name, row in rows.items()
    } == {name: ports_of(name) for name in ("worker", "haproxy", "redis", "gateway")}
    scraped = {int(port) for port in re.findall(r"Prometheus to (\d+)", SECTION)}
    assert scraped == {worker_ports()["metrics"], haproxy_ports()["operator"], Settings().port}


@pytest.mark.needs("redis-server")
def test_redis_wants_the_password_that_the_workers_have(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("*.env"))
    subprocess.run(["sh", "deploy/docker/make-secrets.sh"], cwd=tmp_path, check=True)
    port = free_port()
    with (tmp_path / "deploy/redis/redis.conf").open("a") as conf:
        conf.write(f"port {port}\ndir {tmp_path}\n")
    # The workers' variables are those of the block that installs them.
    target = tmp_path / "worker.env"
    [line] = [line for line in block_with("samserve-worker").splitlines() if line.startswith("cat")]
    line = line.replace("/etc/samserve-worker.env", str(target))
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    [url] = re.findall(r"^SAMSERVE_REDIS_URL=(.*)$", target.read_text(), re.MULTILINE)
    assert "SAMSERVE_WORKER_SECRET=" in target.read_text()
    script = block_with("redis-server").replace("redis-server", "exec redis-server")
    process = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        own = url.replace("@redis:6379", f"@127.0.0.1:{port}")
        assert own != url
        with redis.Redis.from_url(own) as client:
            wait_for(lambda: is_up(client))
        with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis.from_url(own) as client:
            client.shutdown(nosave=True)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
