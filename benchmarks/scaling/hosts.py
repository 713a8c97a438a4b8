"""
Hosts that one machine pretends to be: network namespaces, each with an address of its own, joined by a switch.

A namespace has its own interfaces and ports, so processes in two of them reach each other only through the switch, as on two
machines. Nothing leaves this machine: the switch is in a namespace, too. It takes Linux, root and ``ip`` of iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

GRACE = 5.0
"""Seconds that processes have to end after SIGTERM."""
POLL_INTERVAL = 0.02


def why_not() -> str | None:
    """
    Check whether namespaces can be made here.

    :return: the reason if they cannot, otherwise ``None``
    """
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"`ip netns add` says: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


class Host(NamedTuple):
    """
    A pretended machine.

    :param name: of its namespace
    :param address: its IPv4 address
    :param switch: namespace of the switch
    :param port: its interface on the switch
    """

    name: str
    address: str
    switch: str
    port: str

    def start(self, command: Sequence[str], env: Mapping[str, str], output: Path, cwd: Path) -> subprocess.Popen[bytes]:
        """
        Start a command on the host, in a session of its own.

        :param command: program and arguments
        :param env: environment variables that replace this process's
        :param output: file for both of its outputs, appended to
        :param cwd: working directory
        :return: the process
        """
        # gloo and the store listen on the interface that the host's name stands for, which is this machine's
        variables = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0", **env}
        with output.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=cwd,
                start_new_session=True,
            )

    def cut_off(self) -> None:
        """Pull the cable: no packet arrives or leaves, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def connect(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def processes(self) -> list[int]:
        """Return the IDs of the processes that run on the host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(each) for each in found.stdout.split()]

    def kill(self) -> None:
        """
        Lose the host without a word: pull the cable, then kill all of its processes.

        With the cable in, the kernel would close their connections properly.
        """
        self.cut_off()
        for each in self.processes():
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


@contextmanager
def hosts(n: int) -> Iterator[list[Host]]:
    """
    Have several hosts, and clean up whatever happens.

    :param n: their number, at most 200
    :return: the hosts
    """
    label = f"trpo{os.getpid()}"
    switch = f"{label}-switch"
    members = [Host(f"{label}-{i}", f"10.77.0.{i + 1}", switch, f"port{i}") for i in range(n)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in members:
            _attach(host)
        yield members
    finally:
        _end([pid for host in members for pid in host.processes()])
        for name in (*(host.name for host in members), switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _attach(host: Host) -> None:
    """Make a host and plug it into the switch."""
    _ip("netns", "add", host.name)
    _ip("-n", host.switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("-n", host.switch, "link", "set", host.port, "master", "bridge", "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    for interface in ("lo", "eth0"):
        _ip("-n", host.name, "link", "set", interface, "up")


def _end(processes: Sequence[int]) -> None:
    """Ask processes to end, then kill those that have not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in processes:
            with suppress(ProcessLookupError):
                os.kill(each, number)
        until = time.monotonic() + GRACE
        while any(Path(f"/proc/{each}").exists() for each in processes) and time.monotonic() < until:
            time.sleep(POLL_INTERVAL)


def _ip(*arguments: str) -> None:
    """Call ``ip``; an error of it is an error here."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}` says: {done.stderr.strip()}")
