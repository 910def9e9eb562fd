"""Several hosts on one machine: network namespaces with their own addresses, on one switch.

    with hosts("gateway", "worker1", aliases={"worker": ["worker1"]}) as network:
        network.start("worker1", [...], log)
        network.cut("worker1")

A host has its own network but this machine's file system, so its processes need folders of their
own. Needs Linux, root, iproute2 and dnsmasq.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from samserve_launcher.processes import Children, stop

from . import ROOT

_SUBNET = "10.213.77"
_SWITCH = "switch"
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """The hosts of a `with hosts(…)` block."""

    def __init__(self, names: Sequence[str]) -> None:
        self._addresses = {name: f"{_SUBNET}.{10 + i}" for i, name in enumerate(names)}
        self._children: Children = {}

    def address(self, host: str) -> str:
        """Return a host's IPv4 address."""
        return self._addresses[host]

    def start(
        self,
        host: str,
        command: Sequence[str | Path],
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process on the host. It is stopped at the end of the block.

        Args:
            log: gets its output.
            environ: variables to add to this process's environment.
        """
        with log.open("ab") as output:
            child = subprocess.Popen(
                ["ip", "netns", "exec", _namespace(host), *map(str, command)],
                cwd=ROOT,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[f"{host} {child.pid}"] = child
        return child

    def cut(self, host: str) -> None:
        """Take the host's link down: all packets from and to it are lost without a reset."""
        _ip("-n", _namespace(_SWITCH), "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Take the host's link up again."""
        _ip("-n", _namespace(_SWITCH), "link", "set", self._port(host), "up")

    def narrow(self, host: str, largest: int) -> None:
        """Lose all packets to the host that have more bytes, without a word to their sender.

        A tunnel on the way whose MTU is too small does that. Connections are made, and short
        health checks succeed.
        """
        namespace, network = _namespace(host), f"{_SUBNET}.0/24"
        # The host goes on announcing the segment size of Ethernet.
        _ip("-n", namespace, "route", "change", network, "dev", "eth0", "advmss", "1460")
        _ip("-n", namespace, "link", "set", "eth0", "mtu", str(largest))

    def widen(self, host: str) -> None:
        """Let packets of all sizes through again."""
        _ip("-n", _namespace(host), "link", "set", "eth0", "mtu", "1500")

    @contextmanager
    def seen_from(self, host: str) -> Iterator[None]:
        """Move this thread into the host's network namespace within the block."""
        with (
            open("/proc/thread-self/ns/net") as ours,
            open(f"/run/netns/{_namespace(host)}") as theirs,
        ):
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())

    def _port(self, host: str) -> str:
        return f"port{list(self._addresses).index(host)}"

    def _connect(self, host: str) -> None:
        _ip("-n", _namespace(host), "link", "set", "lo", "up")
        switch, namespace = _namespace(_SWITCH), _namespace(host)
        port = self._port(host)
        peer = ("peer", "eth0", "netns", namespace)
        _ip("link", "add", port, "netns", switch, "type", "veth", *peer)
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")


@contextmanager
def hosts(*names: str, aliases: Mapping[str, Sequence[str]]) -> Iterator[Network]:
    """Make hosts on one network. At the end of the block, stop their processes and remove them.

    Args:
        aliases: the names of the hosts' name server: name -> the hosts that it resolves to.
    """
    network = Network(names)
    with ExitStack() as undo:
        for name in (_SWITCH, *names):
            _ip("netns", "add", _namespace(name))
            undo.callback(_ip, "netns", "delete", _namespace(name))
        switch = _namespace(_SWITCH)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "address", "add", f"{_SUBNET}.1/24", "dev", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="samserve-hosts-")))
        names_file = scratch / "names"
        names_file.write_text(
            "".join(f"{network.address(h)} {alias}\n" for alias, hs in aliases.items() for h in hs)
        )
        for name in names:
            # `ip netns exec` mounts the files of this folder over those of /etc.
            etc = Path("/etc/netns", _namespace(name))
            etc.mkdir(parents=True)
            undo.callback(shutil.rmtree, etc)
            (etc / "resolv.conf").write_text(f"nameserver {_SUBNET}.1\n")
            network._connect(name)
        undo.callback(lambda: stop(network._children))
        command = ["dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--user=root"]
        network.start(_SWITCH, [*command, f"--addn-hosts={names_file}"], scratch / "dnsmasq.log")
        yield network


def why_impossible() -> str | None:
    """Return why this machine cannot make such hosts; None if it can."""
    missing = [tool for tool in ("ip", "dnsmasq") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    unshared = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if unshared.returncode == 0:
        return None
    return f"this machine allows no network namespaces: {unshared.stderr.decode().strip()}"


def _namespace(host: str) -> str:
    return f"samserve-{os.getpid()}-{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
