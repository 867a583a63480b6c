"""A cluster with SLURM, through submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field

import mtmeta

ANSWER = 120.0  # seconds that SLURM has to answer; its own commands give up after about 60
SAVED = 75  # exit code of a run that was told to stop
STEP = 0.1  # seconds between two looks at a process
LAST_SIGNALS = 2.0  # seconds in which SLURM's signal reaches us that has reached the run before
AT_LEAST = 15.0  # seconds before SLURM kills all that are kept for asking it for a requeue
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
# behind the run: it goes on if it was killed, or told to stop (as a preemption with a time of grace does), but not if
# SLURM has the job as anything but running: then it was cancelled, or is requeued already
AFTERWARDS = (
    "code=$?",
    'if [ "$code" -eq 137 ] || [ "$code" -eq 75 ]; then',
    '  if [ "$(squeue -h -o %T -j "$SLURM_JOB_ID")" = RUNNING ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    "fi",
    'exit "$code"',
)


@dataclass(frozen=True, kw_only=True)
class Slurm(mtmeta.Launcher):
    """Jobs of SLURM, submitted by submitit; they outlive the shell.

    A job that is preempted, comes to its time limit or is requeued goes on from its newest checkpoint, to the same
    bits. Needs `pip install 'mtmeta[slurm]'`, SLURM's commands, and a study folder, recipes, data and Python that all
    nodes see under the same paths.
    """

    name = "slurm"

    partition: str | None = None
    """The partition, or several by comma; default: the cluster's."""
    time: mtmeta.PositiveInt = 240
    """Minutes that a job may take; at the limit it saves, and waits in the queue to go on."""
    gpus: Annotated[int, Field(ge=0, le=1000)] = 0
    """GPUs of a job."""
    cpus: mtmeta.PositiveInt = 1
    """Processors of a job, and threads of its run where OMP_NUM_THREADS is not set."""
    memory: mtmeta.PositiveFloat | None = None
    """GB of memory of a job; default: the cluster's."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have: a run goes on only on a processor of the kind that it began on."""
    exclude: str | None = None
    """Nodes not to use, by comma."""
    warning: Annotated[int, Field(ge=60, le=3600)] = 120
    """Seconds before the time limit at which a run is told to save; it must be enough for a step, an evaluation and a
    checkpoint, and SLURM looks every 30 s."""
    timeouts: mtmeta.PositiveInt = 100
    """How often a run may come to the time limit and go on."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run, such as `module load cuda`."""
    more: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, as `{mail-type: FAIL}`."""

    def require(self) -> None:
        """Raise MachineError without submitit or without SLURM's commands."""
        if find_spec("submitit") is None:
            raise mtmeta.MachineError("launcher slurm", "needs submitit; pip install 'mtmeta[slurm]'")
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                message = f"there is no {program} here; give the command on a machine that submits jobs to SLURM"
                raise mtmeta.MachineError("launcher slurm", message)
        if self.time * 60 < 2 * self.warning:
            message = f"{self.time} minutes leave too little before the warning of {self.warning} s; raise it"
            raise mtmeta.UsageError("--set launcher.time", message)

    def submit(self, job: mtmeta.Job) -> str:
        """Submit a job; its handle is the number that SLURM gives it."""
        import submitit

        environment = dict(job.environment)
        if "OMP_NUM_THREADS" not in os.environ:
            environment.setdefault("OMP_NUM_THREADS", str(self.cpus))
        task = LaunchedRun(job.command, environment, str(job.cwd), max(STEP, self.warning - 30 - AT_LEAST))
        try:
            quiet = contextlib.redirect_stderr(io.StringIO())  # submitit says there what it raises, too
            with warnings.catch_warnings(), quiet, _outside_of_jobs():
                warnings.simplefilter("ignore")  # advice on options that are ours to choose
                executor = submitit.SlurmExecutor(
                    folder=job.logs / "%j", max_num_timeout=self.timeouts, python=f"{shlex.quote(sys.executable)} -P"
                )
                executor.update_parameters(**self._parameters(job))
                return str(executor.submit(task).job_id)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise mtmeta.MachineError("launcher slurm", f"sbatch refused: {_line(str(error))}") from error

    def _parameters(self, job: mtmeta.Job) -> dict[str, Any]:
        names = ("partition", "account", "qos", "constraint", "exclude")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given |= {"gpus_per_node": self.gpus or None}
        given |= {"mem": f"{int(self.memory * 1024)}MB" if self.memory is not None else None}
        return {
            **{key: value for key, value in given.items() if value is not None},
            "job_name": job.name,
            "time": self.time,
            "cpus_per_task": self.cpus,
            "srun_args": [f"--cpus-per-task={self.cpus}"],  # which srun no longer takes from the job, from 22.05 on
            "wckey": None,  # submitit's own is refused where such keys are enforced
            "signal_delay_s": self.warning,
            "stderr_to_stdout": True,
            "setup": list(self.setup),
            "teardown": list(AFTERWARDS),
            "additional_parameters": {"requeue": True, "open-mode": "append", **self.more},
        }

    def poll(self, handles: Sequence[str]) -> Mapping[str, mtmeta.JobState]:
        """Ask squeue for the jobs that are not over."""
        command = ["squeue", "--noheader", "--format=%i|%T|%N|%r", f"--jobs={','.join(handles)}"]
        answer = _ask(command, allowed="Invalid job id")  # which it says if it knows none of them any more
        states = {}
        for line in answer.splitlines():
            handle, state, where, why = (part.strip() for part in line.split("|", 3))
            if state in WAITING or state in RUNNING:
                states[handle] = mtmeta.JobState(state in RUNNING, where, "" if why == "None" else why)
        return states

    def cancel(self, handle: str) -> None:
        """End a job: a SIGTERM, and 30 s later, or what the cluster says, a SIGKILL."""
        _ask(["scancel", handle], allowed="Invalid job id")


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide what SLURM set where a study is a job itself, or its jobs would ask for that one's nodes and processors."""
    inside = "SLURM_JOB_ID" in os.environ
    # the configuration's place stays, which submitit's clean_env takes away, too
    names = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names if inside}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _ask(command: Sequence[str], allowed: str) -> str:
    """Return what one of SLURM's commands says. Raises MachineError if it fails, but for an `allowed` reason."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, errors="replace", check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise mtmeta.MachineError("launcher slurm", f"{command[0]} gives no answer ({_line(str(error))})") from error
    if done.returncode and allowed not in done.stderr:
        raise mtmeta.MachineError("launcher slurm", f"{command[0]}: {_line(done.stderr or done.stdout)}")
    return done.stdout


def _line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return mtmeta.safe(lines[-1].partition("error: ")[2] or lines[-1] if lines else "no reason given", 300)


@dataclass
class LaunchedRun:
    """What submitit calls on the node: the run as a process of its own, to which SIGUSR2 is passed on.

    submitit brings it there in a pickle, in the study's folder beside the script that SLURM runs.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    patience: float
    """Seconds that the run has to come to the end of its step, once SIGUSR2 has come."""
    pid: int = 0

    def __call__(self) -> None:
        """Run, and end with the exit code of the run; 137, as a shell has it, if it was killed."""
        # its end with us, however we go: a step that lost its first process has nobody to requeue it
        environment = os.environ | self.environment | {"MTMETA_PARENT": str(os.getpid())}
        process = subprocess.Popen(self.command, env=environment, cwd=self.cwd, stdin=subprocess.DEVNULL)
        self.pid = process.pid
        for _ in self._until_ended():
            pass
        code = process.wait()
        if code == SAVED:
            time.sleep(LAST_SIGNALS)
        sys.exit(code if code >= 0 else 128 - code)

    def _until_ended(self) -> Iterator[None]:
        """Yield from time to time while the run goes on. Takes no lock, for a signal handler does it too."""
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            yield
            time.sleep(STEP)

    def checkpoint(self) -> Any:
        """Have the run save and end; return what submitit is to call after the requeue that it asks for then."""
        import submitit

        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)  # which SLURM sends to all processes of a step, or to ours alone
            end = time.monotonic() + self.patience
            for _ in self._until_ended():
                if time.monotonic() > end:
                    break
        return submitit.helpers.DelayedSubmission(LaunchedRun(self.command, self.environment, self.cwd, self.patience))
