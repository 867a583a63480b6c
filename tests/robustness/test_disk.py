"""A disk that is full or fails: one line, exit code 6, the newest good checkpoint intact, and the run can go on."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtmeta.core.training.checkpoint import Checkpoints
from tests.robustness.conftest import Material
from tests.robustness.forks import Ended, Forks
from tests.robustness.small import differences, outcome, write_recipe
from tests.support.paths import ROOT

RUN = ("run", "../recipe.yaml", "--out", "out")


def _may_mount(folder: Path) -> list[str]:
    """What a command is to be prefixed with so that it may mount; skips if there is no such thing here."""
    for options in (["-m"], ["-Urm"]):
        try:
            subprocess.run(
                ["unshare", *options, "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return ["unshare", *options]
    pytest.skip("may not mount a file system, as root or in a namespace of its own")


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """ENOSPC on 256 kB, with every number of free pages; then a whole run, which goes on when there is space."""
    prefix = _may_mount(tmp_path)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MTMETA_PLUGINS": "none"}
    command = [*prefix, sys.executable, "-m", "tests.robustness.full_disk", str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"swept"') == 2
    print(done.stdout, end="")


class Broken:
    """A run whose disk fails at some point, beside one that nothing disturbed."""

    def __init__(self, forks: Forks, folder: Path, material: Material) -> None:
        write_recipe(folder / "recipe.yaml", "joint", data=material.data, weights=str(material.weights), steps=8)
        self.forks, self.folder, self.env = forks, folder, material.env
        self.finish(self.new("first"))  # fills the cache
        whole = self.new("whole")
        counted = forks.call("tests.robustness.faults:run_with_fault", RUN, 0, "", "count", cwd=whole, env=self.env)
        assert counted.code == 0, counted.output
        self.total = int((whole / "count").read_text())
        self.whole = outcome(whole / "out")

    def new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def finish(self, folder: Path) -> None:
        done = self.forks.mtmeta(*RUN, cwd=folder, env=self.env)
        assert done.code == 0, done.output

    def assert_intact(self, folder: Path, ended: Ended, number: int, story: str) -> None:
        """One line and exit code 6, what was committed is whole, and the same command ends the run as ever."""
        story += f": {ended.output}"
        assert ended.code == 6, story
        errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, story
        assert "Traceback" not in ended.output, story
        assert os.strerror(number) in errors[0], story
        checkpoints = folder / "out" / "checkpoints"
        _, damaged = Checkpoints(checkpoints).newest() if checkpoints.exists() else (None, [])
        assert damaged == [], story
        self.finish(folder)
        assert differences(self.whole, outcome(folder / "out")) == [], story


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 40])
def test_a_disk_that_fails_at_any_operation(every: int, forks: Forks, tmp_path: Path, material: Material) -> None:
    """EIO at one file operation of a run; what is not needed, such as removing leftovers, may be passed over."""
    broken = Broken(forks, tmp_path, material)
    draw, refused = random.Random(every), 0
    for at in range(draw.randint(1, every), broken.total + 1, every):
        folder = broken.new(f"{at:04d}")
        fault = ("tests.robustness.faults:run_with_fault", RUN, at, errno.EIO)
        ended = forks.call(*fault, cwd=folder, env=broken.env)
        if ended.code:
            broken.assert_intact(folder, ended, errno.EIO, f"EIO at {at} of {broken.total}")
            refused += 1
        else:
            left = [name for name in differences(broken.whole, outcome(folder / "out")) if ".trash/" not in name]
            assert left == [], f"EIO at {at} passed over"  # trash that cannot be removed goes at the next start
    assert refused
    print(f"EIO at every {every} of {broken.total} file operations, {refused} of them told the user")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")
@pytest.mark.parametrize(
    ("call", "error"), [("fsync", "EIO"), ("write", "EIO"), ("fsync", "ENOSPC"), ("rename", "EIO")]
)
def test_a_kernel_that_says_so(call: str, error: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    """The same from the kernel, from the n-th call on as a broken disk does it: strace injects the error."""
    broken = Broken(forks, tmp_path, material)
    refused = 0
    for at in range(1, 200, 7):
        folder = broken.new(f"{at:03d}")
        when = f"{at}" if call == "write" else f"{at}+"  # what is said of it is written as well
        fault = (list(RUN), call, f"{call}:error={error}:when={when}", str(folder / "trace"))
        ended = forks.call("tests.robustness.saving:run_traced", *fault, cwd=folder, env=broken.env)
        if "(INJECTED)" not in (folder / "trace").read_text():
            break  # the run makes fewer calls than that
        broken.assert_intact(folder, ended, getattr(errno, error), f"{error} from {call} {at} on")
        refused += 1
    assert refused >= 2
    print(f"{error} from {call} on, at {refused} places")
