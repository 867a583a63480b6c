"""The launcher keeps its contract, and a study on it comes to the same table as one without it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mtmeta_background import Background

from mtmeta.testing import check_launcher

RECIPE = {
    "data_root": ".",
    "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
    "tasks": {"sst": {"train": "sample", "dev": "sample"}, "sts": {"train": "sample", "dev": "sample"}},
    "algorithm": "joint",
    "optimizer": {"name": "adamw", "lr": 0.001},
    "training": {"steps": 60},
    "evaluation": {"every": 60},
    "checkpoint": {"every": 5},
    "reporters": ["jsonl"],
}


def test_contract(tmp_path):
    check_launcher(Background(nice=5), tmp_path)


def test_a_handle_is_not_only_a_number(tmp_path):
    me = Background()
    assert not me.poll([f"{os.getpid()} Thu Jan  1 00:00:00 1970"])
    me.cancel(f"{os.getpid()} Thu Jan  1 00:00:00 1970")  # or this test would end here


@pytest.fixture
def mtmeta(tmp_path):
    (tmp_path / "joint.yaml").write_text(json.dumps(RECIPE))
    installed = tmp_path / "site" / "mtmeta_background-0.1.0.dist-info"  # as pip would leave it
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mtmeta-background\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text("[mtmeta]\nbackground = mtmeta_background\n")
    places = [str(installed.parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    environment |= {"MTMETA_CACHE": str(tmp_path / "cache"), "MTMETA_PLUGINS": "mtmeta-background"}
    environment.pop("MTMETA_DATA", None)

    def run(*arguments):
        command = [sys.executable, "-m", "mtmeta", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_study_that_outlives_its_shell(mtmeta, tmp_path):
    study = ["compare", "joint.yaml", "--seeds", "2", "--json"]
    on = ["--on", "background", "--set", "launcher.every=0.5", "--out", "jobs"]
    alone = json.loads(mtmeta(*study, "--out", "alone"))
    assert len(json.loads(mtmeta(*study, *on, "--detach"))["submitted"]) == 2
    end = time.monotonic() + 120
    while not list((tmp_path / "jobs").glob("*/checkpoints/step-*")):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {run["status"] for run in json.loads(mtmeta("runs", "jobs", "--json"))} & {"running", "finished"}
    assert len(json.loads(mtmeta("cancel", "jobs", "--json"))) > 0
    again = json.loads(mtmeta(*study, *on))
    assert numbers(again) == numbers(alone) != []


def numbers(table):
    return [column for row in table["rows"] for column in row["columns"].values()]
