"""
A wire between pretended hosts that takes its time and loses packets.

    python -m benchmarks.scaling.wire --delay 0.05 --loss 0.01 NAMESPACE=ADDRESS NAMESPACE=ADDRESS

Each namespace gets an interface whose packets this program reads, keeps for a while or drops, and passes on. ``tc netem``
would do the same in the kernel, where the kernel has it. The program prints ``ready`` when all interfaces are up, and runs
until it is killed. It takes ``/dev/net/tun``.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import time
from collections.abc import Mapping

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
"""How Linux is asked for an interface whose packets a program reads and writes, without a header of its own."""
CLONE_NEWNET = 0x40000000
INTERFACE = "eth0"
LONGEST = 65_535
"""Most bytes of any IPv4 packet."""
DESTINATION = slice(16, 20)
"""Bytes of an IPv4 packet that hold the address it is for."""


def open_interface(namespace: str, address: str, longest: int) -> int:
    """
    Make an interface in a namespace.

    :param namespace: name of the network namespace
    :param address: its IPv4 address
    :param longest: most bytes of a packet
    :return: a descriptor: reading gives a packet that the namespace sends, writing delivers one to it
    """
    with open(f"/run/netns/{namespace}", "rb") as there, open("/proc/self/ns/net", "rb") as here:
        _enter(there.fileno())
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
        _enter(here.fileno())
    for arguments in (
        ("address", "add", f"{address}/24", "dev", INTERFACE),
        ("link", "set", INTERFACE, "mtu", f"{longest}", "up"),
    ):
        subprocess.run(["ip", "-n", namespace, *arguments], check=True)
    return descriptor


def _enter(namespace: int) -> None:
    """Move this thread to a network namespace; Python has a function for it from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns failed")


def relay(interfaces: Mapping[bytes, int], delay: float, loss: float) -> None:
    """
    Pass packets on for ever.

    :param interfaces: descriptors by the address of their host, as 4 bytes
    :param delay: seconds that each packet takes
    :param loss: share of the packets that are lost
    """
    draw, waiting, count = random.Random(0), list[tuple[float, int, int, bytes]](), 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([*interfaces.values()], [], [], pause)
        now = time.monotonic()
        for each in readable:
            packet = os.read(each, LONGEST)
            receiver = interfaces.get(packet[DESTINATION])
            if receiver is not None and draw.random() >= loss:
                count += 1  # packets with the same time leave in the order in which they came
                heapq.heappush(waiting, (now + delay, count, receiver, packet))
        while waiting and waiting[0][0] <= now:
            *_, receiver, packet = heapq.heappop(waiting)
            os.write(receiver, packet)


def main() -> None:
    """Join the namespaces that are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("hosts", nargs="+", help="NAMESPACE=ADDRESS")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds from one host to another")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets that are lost")
    parser.add_argument("--packet", type=int, default=1500, help="most bytes of a packet")
    args = parser.parse_args()
    pairs = [each.split("=") for each in args.hosts]
    interfaces = {socket.inet_aton(address): open_interface(name, address, args.packet) for name, address in pairs}
    print("ready", flush=True)
    relay(interfaces, args.delay, args.loss)


if __name__ == "__main__":
    main()
