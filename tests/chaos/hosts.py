"""Hosts of our own: network namespaces with an address each on one bridge, whose link can be taken away.

PostgreSQL, Redis and the distributor's BSS listen on 127.0.0.1, which a namespace does not reach: a relay on the
bridge's address stands before each of them, and everything that a host says goes over its link. A cut takes the link
down: nobody is told, packets simply stop, as when a cable is pulled or a machine freezes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
_SECONDS_MAX = 20
_NAME = "bsy"
"""Names of links have 15 characters at most."""


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace, its address, and the bridge's end of its cable."""

    namespace: str
    address: str
    link: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command begins with to run there; the process keeps its id."""
        return (_ip(), "netns", "exec", self.namespace)


class Hosts:
    """The bridge at ``address`` in this namespace, and the hosts on it."""

    def __init__(self, address: str, hosts: Sequence[Host]) -> None:
        self.address = address
        self.all = tuple(hosts)

    def __getitem__(self, number: int) -> Host:
        """The host of this number, from 0."""
        return self.all[number]

    def cut(self, host: Host) -> None:
        """Nothing comes or goes any more; nobody is told."""
        _run("link", "set", host.link, "down")

    def mend(self, host: Host) -> None:
        """The cable is back."""
        _run("link", "set", host.link, "up")


@contextmanager
def running_hosts(number: int) -> Iterator[Hosts]:
    """So many hosts, gone afterwards. OSError where that is not allowed."""
    _remove_stale()
    mark = f"{_NAME}-{os.getpid():x}-{secrets.token_hex(1)}"
    network = _free_network()
    with ExitStack() as stack:
        bridge = f"{mark}b"
        _run("link", "add", bridge, "type", "bridge")
        stack.callback(_forget, "link", "del", bridge)
        _run("addr", "add", f"{network}.1/24", "dev", bridge)
        _run("link", "set", bridge, "up")
        hosts = [_host(stack, mark, bridge, network, place) for place in range(number)]
        yield Hosts(f"{network}.1", hosts)


def _host(stack: ExitStack, mark: str, bridge: str, network: str, place: int) -> Host:
    host = Host(f"{mark}{place}", f"{network}.{place + 11}", f"{mark}{place}")
    far = f"{mark}{place}n"
    _run("netns", "add", host.namespace)
    stack.callback(_forget, "netns", "del", host.namespace)
    _run("link", "add", host.link, "type", "veth", "peer", "name", far)
    stack.callback(_forget, "link", "del", host.link)
    _run("link", "set", far, "netns", host.namespace)
    _run("link", "set", host.link, "master", bridge)
    _run("link", "set", host.link, "up")
    _run("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", far)
    for link in (far, "lo"):
        _run("-n", host.namespace, "link", "set", link, "up")
    _run("netns", "exec", host.namespace, "true")
    return host


def why_not() -> str | None:
    """Why there can be no such hosts here; None when there can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with running_hosts(1):
            return None
    except OSError as error:
        return f"network namespaces are not to be had here: {error}"


def _ip() -> str:
    found = shutil.which("ip", path=_FOLDERS)
    if found is None:
        raise OSError("there is no program ip (package iproute2)")
    return found


def _run(*arguments: str) -> str:
    done = subprocess.run([_ip(), *arguments], capture_output=True, text=True, check=False, timeout=_SECONDS_MAX)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _forget(*arguments: str) -> None:
    # A link goes with its namespace, at a moment of the kernel's choice: it may be gone already.
    subprocess.run([_ip(), *arguments], capture_output=True, check=False, timeout=_SECONDS_MAX)


def _free_network() -> str:
    """Three numbers of a private network that no link of this machine has."""
    taken = {one.address.rpartition(".")[0] for links in psutil.net_if_addrs().values() for one in links}
    for _ in range(100):
        network = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        if network not in taken:
            return network
    raise OSError("no private network is free")


def _remove_stale() -> None:
    """What a killed run has left behind: the names bear its process."""
    for folder, words in ((Path("/run/netns"), ("netns",)), (Path("/sys/class/net"), ("link",))):
        for name in [one.name for one in folder.glob(f"{_NAME}-*-*")]:
            if not psutil.pid_exists(int(name.split("-")[1], 16)):
                _forget(*words, "del", name)
