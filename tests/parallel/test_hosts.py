"""Ranks on several machines, which network namespaces stand for: see benchmarks/scaling/hosts.py."""

import errno
import os
import re
import subprocess
import sys

import pytest
from helpers.ranks import in_ranks
from helpers.scripts import environment

from benchmarks.scaling import bench, fault_run, faults, hosts

REASON = hosts.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no hosts: {REASON}")


def printed(host, folder, code):
    """Run Python code on a host; return what it prints."""
    output = folder / f"{host.name}.txt"
    assert host.start([sys.executable, "-c", code], {}, output, folder).wait(20) == 0, output.read_text()
    return output.read_text().strip()


def test_hosts_have_names_and_reach_each_other_alone(tmp_path):
    with hosts.hosts(3) as members:
        code = "import socket; name = socket.gethostname(); print(name, socket.gethostbyname(name))"
        for host in members:
            assert printed(host, tmp_path, code) == f"{host.name} {host.address}"
        server = "import socket; server = socket.create_server(('', 7000)); print('ready', flush=True); server.accept()"
        output = tmp_path / "server.txt"
        listening = members[0].start([sys.executable, "-c", server], {}, output, tmp_path)
        assert bench.within(20.0, lambda: output.exists() and "ready" in output.read_text())
        call = f"import socket; socket.create_connection(('{members[0].name}', 7000), 5.0)"
        printed(members[2], tmp_path, call)
        assert listening.wait(20) == 0
        outside = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 7000)))"
        assert int(printed(members[1], tmp_path, outside).split()[-1]) == errno.ENETUNREACH


def fail_with(members, folder):
    """Make hosts, start something on one, and fail."""
    with hosts.hosts(2) as made:
        members += made
        made[1].start(["sleep", "1000"], {}, folder / "output", folder)
        assert bench.within(20.0, lambda: len(made[1].processes()) > 0)
        raise KeyError


def test_nothing_is_left_whatever_happens(tmp_path):
    members = []
    with pytest.raises(KeyError):
        fail_with(members, tmp_path)
    assert members[1].processes() == []
    assert names_made_by(os.getpid()) == []
    assert not any((hosts.NAMES / host.name).exists() for host in members)


def names_made_by(process):
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"^{hosts.LABEL}{process}-\S+", listed, re.MULTILINE)


def test_hosts_of_a_process_that_was_killed_are_removed_by_the_next_one():
    code = "import os; from benchmarks.scaling.hosts import hosts; kept = hosts(2); kept.__enter__(); os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as killed:
        assert killed.wait(60) == -9
    assert len(names_made_by(killed.pid)) == 3
    with hosts.hosts(1):
        assert names_made_by(killed.pid) == []


def run_undisturbed(rank, folder):
    fault_run.train(fault_run.parsed([str(folder)]))


def test_a_cable_that_is_pulled_out_ends_all_ranks_soon_and_a_restart_ends_like_a_run_without_it(tmp_path):
    in_ranks(2, run_undisturbed, tmp_path)
    (expected,) = {each["parameters"] for each in bench.Run(tmp_path, "").reports(range(2))}
    (fault,) = (each for each in faults.FAULTS if each.name == "a cable is pulled out in the critic")
    result = faults.measure(fault._replace(settings={"timeout": 4.0}), expected)
    assert [each["rank"] for each in result["ranks"]] == [0, 1]
    for each in result["ranks"]:
        assert each["error"].startswith("RanksPartedError: ")
        assert each["whole"]
        assert 1.0 < each["seconds"] < 30.0
    assert not result["goes on"]
    assert result["restart ends alike"]
