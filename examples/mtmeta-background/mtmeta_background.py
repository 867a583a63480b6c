"""Runs of a study as processes of this machine that outlive the shell, for mtmeta."""

import os
import signal
import socket
import subprocess
from dataclasses import dataclass

import mtmeta

CHILDREN = []


@dataclass(frozen=True, kw_only=True)
class Background(mtmeta.Launcher):
    """Processes of this machine, all at once, which go on when the shell is closed."""

    name = "background"

    nice: mtmeta.NonNegativeFloat = 10
    """How much the processes give way to others."""

    def submit(self, job):
        command = ["nice", "-n", f"{self.nice:g}", *job.command]
        environment = os.environ | dict(job.environment)
        with open(job.logs / "output.txt", "ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, env=environment, cwd=job.cwd, start_new_session=True, **streams)
        CHILDREN.append(process)  # or Python warns that nobody waits for it
        return f"{process.pid} {_of(process.pid, 'lstart')}"  # a number alone may go to another process

    def poll(self, handles):
        here = mtmeta.JobState(running=True, where=socket.gethostname())
        return {handle: here for handle in handles if _runs(handle)}

    def cancel(self, handle):
        if _runs(handle):
            os.kill(int(handle.split()[0]), signal.SIGTERM)


def _runs(handle):
    pid, _, began = handle.partition(" ")
    return _of(pid, "lstart") == began and not _of(pid, "stat").startswith("Z")


def _of(pid, what):
    return subprocess.run(["ps", "-o", f"{what}=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


@mtmeta.hookimpl
def register_launchers():
    return [Background]
