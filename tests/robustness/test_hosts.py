"""Two hosts, as network namespaces joined by a cable: the bits of one process over a slow cable and after a cut one.

They take the rights of an administrator, and skip where the system does not give them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import Material
from tests.robustness.forks import Forks
from tests.robustness.small import differences, outcome, write_recipe
from tests.support.paths import ROOT
from tests.support.ranks import RANKS, ended, environment

pytestmark = pytest.mark.slow
INNER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]}
REPTILE = {"name": "reptile", "inner_optimizer": INNER, "inner_state": "per_task", "tasks_per_step": 3}
TIMEOUT = 15


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Hosts:
    """Two namespaces, `NAME-0` and `NAME-1`, with an end of the cable each."""

    name: str

    def cable(self, number: int) -> str:
        return f"{self.name}{number}"

    def inside(self, number: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.name}-{number}", *command]

    def do(self, number: int, *command: str) -> None:
        subprocess.run(self.inside(number, *command), check=True, capture_output=True)

    def start(self, folder: Path, material: Material, port: int) -> list[subprocess.Popen[str]]:
        """Start a rank on each host."""
        started = []
        for rank in range(2):
            own = environment(rank, 2, port) | {"LOCAL_RANK": "0", "MASTER_ADDR": "10.78.0.1"}
            own |= {"MTMETA_RANK_TIMEOUT": str(TIMEOUT), "GLOO_SOCKET_IFNAME": self.cable(rank)}
            own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MTMETA_PLUGINS": "none", **material.env}
            environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | own
            command = self.inside(rank, sys.executable, "-m", "mtmeta", "run", "recipe.yaml", "--out", "out")
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True))
        return started


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    found = Hosts(f"mm{os.getpid() % 100_000}")
    try:
        try:
            for number in range(2):
                _ip("netns", "add", f"{found.name}-{number}")
            _ip("link", "add", found.cable(0), "type", "veth", "peer", "name", found.cable(1))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not to be had here ({error})")
        for number in range(2):
            _ip("link", "set", found.cable(number), "netns", f"{found.name}-{number}")
            found.do(number, "ip", "addr", "add", f"10.78.0.{number + 1}/24", "dev", found.cable(number))
            found.do(number, "ip", "link", "set", found.cable(number), "up")
            found.do(number, "ip", "link", "set", "lo", "up")
        yield found
    finally:
        for number in range(2):
            subprocess.run(["ip", "netns", "del", f"{found.name}-{number}"], check=False, capture_output=True)


def test_a_cut_cable_and_a_slow_one(tmp_path: Path, hosts: Hosts, forks: Forks, material: Material) -> None:
    """After the cut both ranks end with one line, in the time that was set; over a slow cable they end the run."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        more: Any = {"steps": 60, "tasks": ("sst", "para", "sts"), "algorithm": REPTILE, "training": {"shards": 2}}
        write_recipe(folder / "recipe.yaml", "reptile", data=material.data, weights=str(material.weights), **more)
    one, two = folders
    codes, written = ended(
        forks.call(RANKS, 1, ["run", "recipe.yaml", "--out", "out"], cwd=one, env=material.env).output
    )
    assert codes == [0], written

    ranks = hosts.start(two, material, 29711)
    while not list((two / "out").rglob("step-*")):
        assert ranks[0].poll() is None, ranks[0].communicate()
        time.sleep(0.05)
    hosts.do(1, "ip", "link", "set", hosts.cable(1), "down")
    cut = time.monotonic()
    for rank in ranks:
        _, stderr = rank.communicate(timeout=4 * TIMEOUT)
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert rank.returncode == 6, stderr
        assert len(errors) == 1 and re.match(r"error: rank \d on \S+: lost another rank ", errors[0]), stderr
    print(f"ended {time.monotonic() - cut:.1f} s after the cut, the time-out being {TIMEOUT} s")
    assert not (two / "out" / "summary.json").exists()

    hosts.do(1, "ip", "link", "set", hosts.cable(1), "up")
    slow = "rate 2mbit burst 16kb latency 400ms".split()
    hosts.do(0, "tc", "qdisc", "add", "dev", hosts.cable(0), "root", "tbf", *slow)
    ranks = hosts.start(two, material, 29712)
    for rank in ranks:
        _, stderr = rank.communicate(timeout=500)
        assert rank.returncode == 0, stderr
    assert differences(outcome(one / "out"), outcome(two / "out")) == []
