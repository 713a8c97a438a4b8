"""
Hosts that one machine pretends to be: network namespaces, each with an address of its own, joined by a switch.

A namespace has its own interfaces and ports, so processes in two of them reach each other only through the switch, as on two
machines. Each host also has its own name, and all know all names. Nothing leaves this machine: the switch is in a namespace,
too. It takes Linux, root, ``ip`` of iproute2 and ``unshare`` of util-linux.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

LABEL = "sb3trpo"
"""Beginning of the names of all hosts; the number of the process that has made them follows."""
NAMES = Path("/etc/netns")
"""``ip netns exec NAME`` shows a process the files in its folder NAME as those of ``/etc``."""
GRACE = 5.0
"""Seconds that processes have to end after SIGTERM."""
POLL_INTERVAL = 0.02
NAMED = 'hostname "$0" && exec "$@"'
"""Shell script that runs a command under a host name."""


def why_not() -> str | None:
    """
    Check whether hosts can be made here, by making some.

    :return: the reason if they cannot, otherwise ``None``
    """
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    missing = [program for program in ("ip", "unshare") if shutil.which(program) is None]
    if missing:
        return f"there is no {missing[0]!r}: install iproute2 and util-linux"
    try:
        with hosts(2) as members:
            started = members[0].start(["true"], {}, Path(os.devnull), Path.cwd())
            return f"a command on a host ends with {started.returncode}" if started.wait(GRACE) else None
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return str(error)


class Host:
    """
    A pretended machine.

    :param name: its name, and that of its namespace
    :param address: its IPv4 address
    :param switch: namespace of the switch
    :param port: its interface on the switch
    """

    def __init__(self, name: str, address: str, switch: str, port: str) -> None:
        self.name, self.address, self.switch, self.port = name, address, switch, port
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], env: Mapping[str, str], output: Path, cwd: Path) -> subprocess.Popen[bytes]:
        """
        Start a command on the host, in a session of its own.

        :param command: program and arguments
        :param env: environment variables that replace this process's
        :param output: file for both of its outputs, appended to
        :param cwd: working directory
        :return: the process
        """
        with output.open("ab") as file:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", NAMED, self.name, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | env,
                cwd=cwd,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def cut_off(self) -> None:
        """Pull the cable out: packets are lost, and connections stay open."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def connect(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.switch, "link", "set", self.port, "up")

    def processes(self) -> list[int]:
        """Return the IDs of the processes that run on the host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(each) for each in found.stdout.split()]

    def stop(self) -> None:
        """Ask all processes of the host to end, then kill those that have not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            until = time.monotonic() + GRACE
            while self.processes() and time.monotonic() < until:
                time.sleep(POLL_INTERVAL)
        for each in self._started:
            each.wait()

    def kill(self) -> None:
        """
        Lose the host without a word: pull the cable, then kill all of its processes.

        With the cable in, the kernel would close their connections properly.
        """
        self.cut_off()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for each in self.processes():
            with suppress(ProcessLookupError):
                os.kill(each, number)


class Wire(NamedTuple):
    """
    What joins the hosts.

    :param delay: seconds that a packet takes from one host to another
    :param loss: share of the packets that are lost
    :param packet: most bytes of a packet
    """

    delay: float = 0.0
    loss: float = 0.0
    packet: int = 1500


SWITCH = Wire()
"""Hosts with neither delay nor loss between them are plugged into a switch, and only their cables can be pulled out."""


@contextmanager
def hosts(n: int, wire: Wire = SWITCH) -> Iterator[list[Host]]:
    """
    Have several hosts, and clean up whatever happens.

    :param n: their number, at most 200
    :param wire: what joins them
    :return: the hosts
    """
    _remove_what_was_left()
    label = f"{LABEL}{os.getpid()}"
    switch = f"{label}-switch"
    members = [Host(f"{label}-{i}", f"10.77.0.{i + 1}", switch, f"port{i}") for i in range(n)]
    try:
        for host in members:
            (NAMES / host.name).mkdir(parents=True)
            lines = ("127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in members))
            (NAMES / host.name / "hosts").write_text("\n".join(lines) + "\n")
        for name in (*(host.name for host in members), switch):
            _ip("netns", "add", name)
        with _joined_by_switch(members, switch) if wire == SWITCH else _joined_by(wire, members):
            for host in members:
                _ip("-n", host.name, "link", "set", "lo", "up")
            yield members
    finally:
        for host in members:
            host.stop()
        for name in (*(host.name for host in members), switch):
            _remove(name)


def _remove(name: str) -> None:
    """Remove a namespace, if it is there."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    shutil.rmtree(NAMES / name, ignore_errors=True)


def _remove_what_was_left() -> None:
    """Remove the hosts of processes that have been killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for name, owner in re.findall(rf"^({LABEL}(\d+)-\w+)", listed, re.MULTILINE):
        if not Path("/proc", owner).exists():
            Host(name, "", "", "").stop()
            _remove(name)


@contextmanager
def _joined_by_switch(members: Sequence[Host], switch: str) -> Iterator[None]:
    """Plug hosts into a switch. It ends with its namespace."""
    _ip("-n", switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
    _ip("-n", switch, "link", "set", "bridge", "up")
    for host in members:
        _ip("-n", switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
    yield


@contextmanager
def _joined_by(wire: Wire, members: Sequence[Host]) -> Iterator[None]:
    """Join hosts by a program that passes their packets on."""
    command = [sys.executable, str(Path(__file__).with_name("wire.py")), "--delay", str(wire.delay), "--loss", str(wire.loss)]
    command += ["--packet", str(wire.packet)]
    addresses = [f"{host.name}={host.address}" for host in members]
    with subprocess.Popen([*command, *addresses], stdout=subprocess.PIPE) as relay:
        try:
            assert relay.stdout is not None, "it is a pipe"
            if relay.stdout.readline() != b"ready\n":
                raise RuntimeError("The wire has failed; see what it has printed.")
            yield
        finally:
            relay.kill()


def _ip(*arguments: str) -> None:
    """Call ``ip``; an error of it is an error here."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}` says: {done.stderr.strip()}")
