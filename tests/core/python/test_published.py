"""A run pushed to a hub on the loopback device and loaded from there: the same answers, and nothing that is private."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from tests.support.loopback import Loopback, serving, sha256
from tests.support.quick import quick

TEXTS = ["word 1 good", "word 2", "another text of some words"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A hub, with caches of the test's own."""
    with serving() as server:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
        monkeypatch.setattr(
            f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.url, raising=False)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.fixture(scope="module", params=["joint", "individual", "frozen"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: one encoder, an encoder for each task, or one that is not trained, with adapters."""
    folder = tmp_path_factory.mktemp(request.param)
    changes: dict[str, Any] = {"adapters": {"rank": 2, "encoder": "frozen"}} if request.param == "frozen" else {}
    recipe = quick(folder, "joint" if changes else request.param, **changes)
    mtmeta.run(recipe, out=folder / "run", device="cpu")
    return folder / "run"


def test_what_is_pushed_answers_as_the_run(run: Path, hub: Loopback, tmp_path: Path) -> None:
    address = mtmeta.push_to_hub(run, "owner/mine", token="secret")
    name, _, commit = address.removeprefix("hf:").partition("@")
    files = hub.repositories[name][commit]
    assert {"mtmeta.json", "README.md", "recipe.yaml", "recipe.lock.yaml", "summary.json"} < set(files)
    assert not [path for path in files if path.startswith(("predictions", "events", "rows")) or "optimizer" in path]
    assert str(run.parent).encode() not in b"".join(data for path, data in files.items() if "safetensors" not in path)
    expected = mtmeta.load(run, device="cpu")
    for given in (address, "hf:owner/mine"):
        loaded = mtmeta.load(given, device="cpu")
        for task in ("kind", "grade"):
            assert loaded.predict(task, TEXTS) == expected.predict(task, TEXTS)
    asked = len(hub.asked)
    assert mtmeta.load(address, device="cpu").predict("kind", TEXTS) == expected.predict("kind", TEXTS)
    assert not [one for one in hub.asked[asked:] if one[0] == "GET"]  # what was fetched is not fetched again
    place = next((tmp_path / "cache" / "runs").iterdir())
    scores = mtmeta.evaluate(place, files={"kind": str(run.parent / "dev.tsv")}, device="cpu")
    assert scores.tasks["kind"]["value"] == mtmeta.evaluate(run, device="cpu").tasks["kind"]["value"]


def test_a_run_from_memory_leaves_its_data_at_home(hub: Loopback, tmp_path: Path) -> None:
    data = mtmeta.classification(["a private text", "another"] * 4, ["x", "y"] * 4, dev=(["c"], ["x"]))
    options: dict[str, Any] = {"backbone": {"name": "bert", "weights": "tiny", "max_length": 16}, "device": "cpu"}
    run = mtmeta.train({"kind": data}, out=tmp_path / "x", steps=1, reporters=["jsonl"], **options)
    address = mtmeta.push_to_hub(run, "owner/memory")
    files = next(iter(hub.repositories["owner/memory"].values()))
    assert not [path for path, data in files.items() if b"a private text" in data or path.startswith("rows")]
    assert str(tmp_path).encode() not in files["recipe.yaml"] + files["summary.json"]
    assert mtmeta.load(address, device="cpu").predict("kind", "word") == run.predict("kind", "word")


def spoilt(hub: Loopback, change: str) -> None:
    """Change what the hub has of owner/mine."""
    for files in hub.repositories["owner/mine"].values():
        manifest = json.loads(files["mtmeta.json"])
        weights = next(path for path in files if path.endswith("model.safetensors"))
        if change == "weights":
            files[weights] = files[weights][:-1] + bytes([files[weights][-1] ^ 1])
        elif change == "outside":
            manifest["files"]["../../evil"] = manifest["files"].pop("summary.json")
        elif change == "link":
            manifest["links"] = {"checkpoints/best": "../../../etc"}
        elif change == "format":
            manifest["format"] = 2
        elif change == "missing":
            del files[weights]
        if change != "json":
            files["mtmeta.json"] = json.dumps(manifest).encode()
        else:
            files["mtmeta.json"] = b"[1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", "model.safetensors is not the file that mtmeta.json lists"),
        ("outside", "is not that of a run"),
        ("link", "is not that of a run"),
        ("format", "holds a run of format 2, this mtmeta reads 1"),
        ("json", "its mtmeta.json is damaged"),
        ("missing", "has no checkpoints/.*model.safetensors"),
    ],
)
def test_what_is_no_run_is_refused(change: str, message: str, hub: Loopback, tmp_path: Path) -> None:
    mtmeta.run(quick(tmp_path), out=tmp_path / "run", device="cpu")
    mtmeta.push_to_hub(tmp_path / "run", "owner/mine")
    spoilt(hub, change)
    with pytest.raises(mtmeta.WeightsError, match=message):
        mtmeta.load("hf:owner/mine")
    assert not list((tmp_path / "cache").glob("runs/*"))
    assert sha256(b"") and not (tmp_path / "evil").exists()


def test_what_cannot_be_pushed_or_loaded_is_one_line(hub: Loopback, tmp_path: Path, monkeypatch: Any) -> None:
    mtmeta.run(quick(tmp_path), out=tmp_path / "run", device="cpu")
    with pytest.raises(mtmeta.UsageError, match="is no model on the hub"):
        mtmeta.push_to_hub(tmp_path / "run", "a/b/c")
    with pytest.raises(mtmeta.MachineError, match=r"cannot be written to .*403.*; check the name") as refused:
        mtmeta.push_to_hub(tmp_path / "run", "forbidden/mine")
    assert len(refused.value.lines()) == 1
    with pytest.raises(mtmeta.MachineError, match="not found, or private"):
        mtmeta.load("hf:owner/none")
    unfinished = Path(shutil.copytree(tmp_path / "run", tmp_path / "cut", symlinks=True))
    (unfinished / "summary.json").unlink()
    with pytest.raises(mtmeta.UsageError, match="is not finished"):
        mtmeta.push_to_hub(unfinished, "owner/mine")
    monkeypatch.setenv("MTMETA_CACHE", "off")
    with pytest.raises(mtmeta.MachineError, match="MTMETA_CACHE: is off"):
        mtmeta.load("hf:owner/mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(mtmeta.MachineError, match="HF_HUB_OFFLINE is set"):
        mtmeta.push_to_hub(tmp_path / "run", "owner/mine")
