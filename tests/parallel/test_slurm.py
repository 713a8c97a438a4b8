"""The batch script of the documentation, on hosts of network namespaces, with stubs for SLURM's programs."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import DOCS, ROOT
from helpers.ranks import in_ranks

from benchmarks.scaling import bench, fault_run, hosts

SCRIPT = DOCS / "guide" / "slurm" / "train.sbatch"
REASON = hosts.why_not()
on_hosts = pytest.mark.skipif(REASON is not None, reason=f"no hosts: {REASON}")
JOB = 4_217
SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.txt
[ "$1" != show ] || printf '%s\\n' {names}
"""
SRUN = """#!/bin/sh
[ "$1" = --cpus-per-task=1 ] || exit 2
shift
for host in {names}; do
    ip netns exec $host unshare --uts sh -c {named} $host "$@" &
    started="$started $!"
done
for each in $started; do
    wait $each || failed=1
done
exit ${{failed:-0}}
"""
TRAIN = """
from benchmarks.scaling.fault_run import parsed, train

train(parsed([".", "--phase", "collecting"]))
"""


def test_the_script_is_one_of_bash():
    assert SCRIPT.read_text().startswith("#!/bin/bash\n#SBATCH ")
    subprocess.run(["bash", "-n", SCRIPT], check=True)


class Cluster:
    """
    Two hosts with SLURM's programs, as far as the script needs them.

    :param members: the hosts
    :param folder: where jobs run
    """

    def __init__(self, members: list[hosts.Host], folder: Path) -> None:
        self.hosts, self.folder = members, folder
        names = " ".join(host.name for host in members)
        (folder / "bin").mkdir()
        for name, text in {"scontrol": SCONTROL, "srun": SRUN}.items():
            program = folder / "bin" / name
            program.write_text(text.format(names=names, named=shlex.quote(hosts.NAMED)))
            program.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start the job as SLURM does: the script is in a shell of its own, which gets none of the steps' signals."""
        paths = (self.folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
        slurm = {"JOB_ID": JOB, "JOB_NODELIST": "all", "NNODES": len(self.hosts), "CPUS_PER_TASK": 1}
        env = {"PATH": os.pathsep.join(map(str, paths)), "PYTHONPATH": str(ROOT)}
        env |= {f"SLURM_{name}": str(value) for name, value in slurm.items()} | variables
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(["bash", SCRIPT], env=os.environ | env, cwd=self.folder, stdout=output, stderr=output)

    def signal_steps(self, number: int) -> None:
        for host in self.hosts:
            for process in host.processes():
                os.kill(process, number)

    def called(self) -> list[str]:
        """Return the arguments of all calls of scontrol."""
        return (self.folder / "scontrol.txt").read_text().splitlines()


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    with hosts.hosts(2) as members:
        yield Cluster(members, tmp_path)


def run_undisturbed(rank, folder):
    fault_run.train(fault_run.parsed([str(folder)]))


def reports(folder, n_ranks=2):
    return bench.Run(folder, "").reports(range(n_ranks))


@on_hosts
def test_a_job_that_is_stopped_before_its_time_limit_asks_to_be_requeued_and_then_ends_as_if_undisturbed(cluster, tmp_path):
    in_ranks(2, run_undisturbed, tmp_path / "undisturbed")
    (expected,) = {each["parameters"] for each in reports(tmp_path / "undisturbed")}
    first = cluster.start()
    reached = tmp_path / fault_run.REACHED
    bench.within(bench.LIMIT, lambda: reached.exists() or first.poll() is not None)
    assert reached.exists(), (tmp_path / "output.txt").read_text()
    cluster.signal_steps(signal.SIGTERM)
    (tmp_path / fault_run.GO_ON).write_text("")
    assert first.wait(bench.LIMIT) == 1
    assert cluster.called() == ["show hostnames all", f"requeue {JOB}"]
    assert [(each["updates"], each["error"]) for each in reports(tmp_path)] == [(3, None)] * 2
    assert cluster.start(SLURM_RESTART_COUNT="1").wait(bench.LIMIT) == 0
    assert cluster.called()[2:] == ["show hostnames all"]
    assert {each["parameters"] for each in reports(tmp_path)} == {expected}


@on_hosts
@pytest.mark.parametrize(("restarts", "is_requeued"), [("19", True), ("20", False)])
def test_a_job_with_an_error_does_not_come_back_for_ever(cluster, tmp_path, restarts, is_requeued):
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    assert cluster.start(SLURM_RESTART_COUNT=restarts).wait(bench.LIMIT) == 1
    assert cluster.called()[1:] == ([f"requeue {JOB}"] if is_requeued else [])
