"""What an offline run holds, read back from its file."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mtmeta_wandb import WandB

import mtmeta
from mtmeta.testing import check_reporter, run_events

pytest.importorskip("wandb", reason="needs wandb")
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # of wandb's own

BLOCK = 32768


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    for key, value in {
        "SILENT": "true",
        "CONFIG_DIR": str(tmp_path / "config"),
        "CACHE_DIR": str(tmp_path / "c"),
    }.items():
        monkeypatch.setenv(f"WANDB_{key}", value)


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: those of a LevelDB log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def sittings(run: Path) -> list[tuple[dict[str, Any], dict[int, dict[str, float]]]]:
    """Of each offline folder: id, name, project and config; and what was logged, by step."""
    found = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        about: dict[str, Any] = {}
        logged: dict[int, dict[str, float]] = {}
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                about = {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
                about["config"] = {key: value for key, value in config.items() if not key.startswith("_")}
            elif record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                logged[int(items["_step"])] = {k: v for k, v in items.items() if not k.startswith("_")}
        found.append((about, logged))
    return found


def test_contract_and_content(tmp_path: Path) -> None:
    check_reporter(WandB(mode="offline", project="mine"), tmp_path)
    ((about, logged),) = sittings(tmp_path / "whole")
    assert about["id"] == (tmp_path / "whole" / "wandb-id.txt").read_text()
    assert (about["name"], about["project"]) == ("tiny", "mine")
    assert about["config"] == {"name": "tiny", "seed": 1, "algorithm": {"name": "joint"}}
    expected: dict[int, dict[str, float]] = {}
    for event in run_events()[:-1]:
        for scalar in mtmeta.scalars(event):
            expected.setdefault(scalar.step, {})[scalar.tag()] = scalar.value
    assert {step: numbers(values) for step, values in logged.items()} == {s: numbers(v) for s, v in expected.items()}

    (first, before), (second, after) = sittings(tmp_path / "cut")
    assert first["id"] == second["id"] != about["id"]
    assert sorted(before) == [1, 2, 3] and sorted(after) == [3, 4]
    assert numbers(before[3]) == numbers(after[3])
    assert {step: numbers(values) for step, values in (before | after).items()} == {
        step: numbers(values) for step, values in logged.items()
    }

    ((_, grouped),) = sittings(tmp_path / "groups")
    assert sorted(grouped) == list(range(1, 9))  # the second group's steps follow those of the first
    assert {"lr/sst", "loss/sst"} <= set(grouped[1]) and {"lr/sts", "loss/sts"} <= set(grouped[5])


def numbers(values: dict[str, float]) -> dict[str, float | None]:
    """NaN, which equals nothing, as None; W&B writes it as a word."""
    return {key: None if value != value or value == "NaN" else value for key, value in values.items()}


def test_without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        mtmeta.MachineError, match=r"^reporter 'wandb': needs wandb, which is not installed; pip install"
    ):
        WandB().require()


def test_without_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(
        mtmeta.MachineError, match=r"^reporter 'wandb': has no login; run `wandb login`, or set mode: off"
    ):
        WandB().require()
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandB().require()
