"""Errors as data between a run's process and the comparison that started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtmeta.core.errors import CheckpointError, DataError, MachineError, MtmetaError, Problems, RunInUse, Stopped
from mtmeta.core.studies.processes.error_pipe import PIPE, receive_errors, send_error


def sent(error: MtmetaError | Stopped) -> list[MtmetaError]:
    """The errors at the other end of a pipe."""
    read, write = os.pipe()
    assert send_error(error, str(write))
    with open(read, encoding="utf-8") as lines:
        return list(receive_errors(lines))


def test_kind_place_message_and_help_arrive() -> None:
    (error,) = sent(RunInUse("runs/a", "is in use by pid 7 on host h", help=["wait"]))
    assert type(error) is RunInUse
    assert isinstance(error, CheckpointError)
    assert (error.place, error.message, error.help) == ("runs/a", "is in use by pid 7 on host h", ("wait",))


def test_each_of_several_problems_arrives() -> None:
    errors = sent(Problems([DataError("a.csv", "is missing"), MtmetaError("", "bug\nin two lines")]))
    assert [(type(error), str(error)) for error in errors] == [
        (DataError, "a.csv: is missing"),
        (MtmetaError, "bug\\nin two lines"),
    ]


def test_a_stop_and_a_class_of_a_plugin_arrive_as_what_the_parent_knows() -> None:
    class Own(DataError):
        pass

    (stopped,) = sent(Stopped("SIGTERM", "at meta-step 4"))
    assert (type(stopped), str(stopped)) == (MachineError, str(Stopped("SIGTERM", "at meta-step 4")))
    assert type(sent(Own("x", "y"))[0]) is DataError


def test_a_torn_line_is_left_out() -> None:
    whole = json.dumps({"kind": "DataError", "place": "", "message": "m", "help": []})
    assert [str(error) for error in receive_errors([whole + "\n", whole[:-9], "3\n", '{"kind": "Nobody"}\n'])] == ["m"]


@pytest.mark.parametrize("pipe", ["", "no number", "987654"])
def test_without_a_pipe_nothing_is_sent(pipe: str) -> None:
    assert not send_error(DataError("", "m"), pipe)


def test_a_process_with_a_pipe_leaves_stderr_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtmeta", "run", str(tmp_path / "nothing.yaml")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    read, write = os.pipe()
    environ = {**os.environ, PIPE: str(write)}
    piped = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, pass_fds=[write])
    os.close(write)
    with open(read, encoding="utf-8") as lines:
        (error,) = receive_errors(lines)
    assert (piped.stderr, piped.returncode) == ("", plain.returncode)
    assert plain.stderr == f"error: {error}\n"
