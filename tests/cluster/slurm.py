"""A Slurm of one node on this machine, for tests: loopback only, ports and a folder of its own.

It has no accounting. The two GPUs of its node do not exist; Slurm hands them out all the same.
Needs Debian's slurm-wlm and munge, which have neither to be configured nor started by systemd.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "squeue", "scontrol")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
NODE = socket.gethostname().split(".")[0]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that its node lost starts again when the credential of its first start has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# Without these the daemons listen on every address.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
MinJobAge=300
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
# The node has what is written here, whatever the machine has.
SlurmdParameters=config_overrides
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000000 Gres=gpu:2
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE
"""


def unavailable() -> str | None:
    """Why this machine can start no Slurm, if so."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)}: not found, expected Debian's slurm-wlm and munge"
    return None if os.geteuid() == 0 else "slurmd has to be started by root"


class Slurm:
    """Its daemons, in the foreground. ``environment`` is for commands that are to use them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen] = {}
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(folder / "bin"), PATH]),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        """Start all of it; returns when the node takes jobs."""
        # munged refuses a socket that others could not reach.
        self.folder.chmod(0o711)
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        for name in ("gpu0", "gpu1"):
            (self.folder / name).symlink_to("/dev/null")
        text = CONFIGURATION.format(node=NODE, folder=self.folder, ports=free_ports(2))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        # Snakemake's job step drops SLURM_CONF, and srun would read the system's configuration.
        srun = self.folder / "bin/srun"
        real = shutil.which("srun", path=PATH)
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {real} "$@"\n')
        srun.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {
            f"--{name}-file": self.folder / f"munge.{name}"
            for name in ("key", "pid", "seed", "log")
        }
        options = [f"{name}={path}" for name, path in files.items()]
        self._start("munged", "--foreground", f"--socket={self.folder}/munge.socket", *options)
        wait_for((self.folder / "munge.socket").exists, "munged")
        self._start("slurmctld", "-D")
        self.start_node()

    def start_node(self) -> None:
        self._start("slurmd", "-D", "-N", NODE)
        ready = ("idle", "mixed", "allocated")
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").strip() in ready, "the node")

    def fail_node(self) -> None:
        """End the node and all that runs there at once, as a loss of power does."""
        steps = [
            process
            for process in psutil.process_iter(["name"])
            if process.info["name"] == "slurmstepd" and self._is_ours(process)
        ]
        running = [child for step in steps for child in step.children(recursive=True)]
        node = self.daemons.pop("slurmd")
        for process in [node, *steps, *running]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        # Slurm would come to know by itself, after SlurmdTimeout.
        self.run("scontrol", "update", f"NodeName={NODE}", "State=DOWN", "Reason=failed")

    def stop(self) -> None:
        if "slurmd" in self.daemons:
            self.fail_node()
        for daemon in self.daemons.values():
            daemon.terminate()
            daemon.wait(timeout=30)
        # Without control groups Slurm does not end a process that has outlived its parent.
        for process in psutil.process_iter():
            if self._is_ours(process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def run(self, *command: str) -> str:
        """What the command prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether this very Slurm, or a command that uses it, has started the process."""
        try:
            # A daemon that has renamed itself has overwritten a part of its environment.
            return bytes(self.folder) in Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            return False

    def _start(self, name: str, *options: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                [name, *options], env=self.environment, stdout=output, stderr=output
            )


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240.0) -> object:
    """The first value of ``condition()`` that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what}: nothing came within {seconds:.0f} s")


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
