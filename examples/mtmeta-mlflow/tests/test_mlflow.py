"""What a store of plain files holds, asked by MLflow's client."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mtmeta_mlflow import MLflow

import mtmeta
from mtmeta.testing import check_reporter, run_events

mlflow = pytest.importorskip("mlflow", reason="needs mlflow or mlflow-skinny")


def content(client: Any, run: Path) -> dict[str, list[tuple[int, float | None]]]:
    """Every number of a run, by metric; NaN, which equals nothing, as None."""
    name = (run / "mlflow-run-id.txt").read_text()
    found = {}
    for key in client.get_run(name).data.metrics:
        history = [(metric.step, metric.value) for metric in client.get_metric_history(name, key)]
        found[key] = [(step, None if value != value else value) for step, value in history]
    return found


def test_contract_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    check_reporter(MLflow(tracking_uri=store, experiment="mine"), tmp_path)
    client = mlflow.MlflowClient(tracking_uri=store)

    expected: dict[str, list[tuple[int, float | None]]] = {}
    for event in run_events():
        for scalar in mtmeta.scalars(event):
            value = None if scalar.value != scalar.value else scalar.value
            expected.setdefault(scalar.tag(), []).append((scalar.step, value))
    assert content(client, tmp_path / "whole") == expected
    assert content(client, tmp_path / "cut") == expected, "the step after the checkpoint must not be there twice"
    grouped = content(client, tmp_path / "groups")
    assert [step for step, _ in grouped["lr/sst"]] == [step for step, _ in grouped["lr/sts"]] == [1, 2, 4]

    for name in ("whole", "cut", "groups"):
        run = client.get_run((tmp_path / name / "mlflow-run-id.txt").read_text())
        assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
        assert run.data.params["algorithm"] == "joint"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["recipe.yaml"]
    experiment = client.get_experiment_by_name("mine")
    assert len(client.search_runs([experiment.experiment_id])) == 3


def test_an_interrupted_run_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    for end, status in ((KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")):
        with pytest.raises(end), MLflow(tracking_uri=store).open(tmp_path) as handle:
            for event in run_events()[:4]:
                handle(event)
            raise end
        run = (tmp_path / "mlflow-run-id.txt").read_text()
        assert mlflow.MlflowClient(tracking_uri=store).get_run(run).info.status == status


def test_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        mtmeta.MachineError, match=r"^reporter 'mlflow': needs mlflow, which is not installed; pip install"
    ):
        MLflow().require()


def test_a_store_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained before MLflow has answered."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in ("http://127.0.0.1:9", "gopher://nobody"):
        with pytest.raises(
            mtmeta.MachineError, match=r"^reporter 'mlflow': cannot use its store \(.*; set tracking_uri"
        ):
            MLflow(tracking_uri=uri).require()
