"""Adapters in exports: for peft, and merged for other libraries; each is what the adapters' own path computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mtmeta
from benchmarks import export as benchmark
from mtmeta.core.errors import MachineError
from mtmeta.core.export import export as exporting
from mtmeta.core.export.export import export, load_part
from mtmeta.core.export.peft_files import PREFIX, PeftFiles, peft_files
from mtmeta.core.methods.adapters import Adapters
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.request import RunRequest
from mtmeta.plugins.backbones.bert import Bert
from tests.core.export.test_export import PAIRS, TASKS, TEXTS, inside, make_run, run_card
from tests.core.export.test_families import planned
from tests.support.commands import assert_refused, call
from tests.support.families import write_family
from tests.support.parameters import some_quick
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
Texts = dict[str, list[Any]]
MAKE = {"optimizer": {"name": "adamw", "lr": 1e-2}, "training": {"steps": 3}}
HEADS = {"heads.json", "heads.safetensors", "modeling.py"}
OWN = {"adapter_config.json", "adapter_model.safetensors", "README.md", *HEADS}
BASE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "trained": ("joint", {"encoder": "trained"}),
    "frozen": ("joint", {"encoder": "frozen"}),
    "shared": ("joint", {"per": "all"}),
    "apart": ("individual", {"encoder": "trained", "alpha": 5.5}),
    "apart, frozen": ("individual", {"encoder": "frozen"}),
}


@pytest.fixture(scope="module", params=some_quick(KINDS, 3))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run with adapters of each kind, whose name is the first of the pair."""
    algorithm, options = KINDS[request.param]
    folder, tasks = tmp_path_factory.mktemp("adapters"), {"same": TASKS["same"]}
    return request.param, make_run(folder, algorithm, tasks, adapters={"rank": 3, **options}, **MAKE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters of each task, beside an encoder that is trained too."""
    return make_run(tmp_path_factory.mktemp("run"), "joint", {}, adapters={"rank": 3}, **MAKE)


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: nothing here loads what is exported for it")


def parts_of(run: Path, task: str, *, base: str = "_base") -> Any:
    session = open_run(run, RunRequest(device="cpu"))
    group = next(group for group in session.groups if task in group)
    return load_part(session, group, [task], "peft", base_folder=base)


@pytest.mark.parametrize(
    "form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow), "sentence-transformers", "peft"]
)
def test_every_format_predicts_with_the_tasks_own_adapters(
    form: str, made: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Loaded as the cards say, on texts that the check of the export has not seen."""
    if form == "peft":
        request.getfixturevalue("peft")
    kind, run = made
    if form == "onnx" and kind not in ("trained", "shared"):
        pytest.skip("a graph takes a while, and is made of the encoder that the other formats hold")
    texts: Texts = {"kind": TEXTS, "grade": TEXTS} | ({} if form == "sentence-transformers" else {"same": PAIRS})
    document = export(run, form, out=tmp_path / "out")
    differences = benchmark.differences(run, form, tmp_path / "out", texts)
    assert list(differences) == list(texts)
    assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5
    assert 0 < max(document["differences"].values()) < 1e-5


def test_the_folder_holds_these_files(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, run = made
    export(run, "peft", out=tmp_path / "out")
    found: dict[str, set[str]] = {}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            found.setdefault(path.parent.name, set()).add(path.name)
    base, tasks = {*BASE, "vocab.txt"}, ("kind", "grade", "same")
    if kind == "shared":
        assert found == {"out": {*OWN, "export.json"}, "_base": base}
        return
    bases = [f"_base-{task}" for task in tasks] if kind == "apart" else ["_base"]
    whole = {"out": {"README.md", "export.json"}, **dict.fromkeys(tasks, OWN), **dict.fromkeys(bases, base)}
    assert found == whole
    for task in tasks:
        config = json.loads((tmp_path / "out" / task / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == ("../_base" if len(bases) == 1 else f"../_base-{task}")
        heads = json.loads((tmp_path / "out" / task / "heads.json").read_text())
        assert list(heads["tasks"]) == [task]
        assert all(name.startswith(f"{task}.") for name in load_file(tmp_path / "out" / task / "heads.safetensors"))


def test_rows_of_queries_keys_and_values_and_whole_norms(run: Path, tmp_path: Path) -> None:
    folder = Path(export(run, "peft", tasks=["grade"], out=tmp_path / "out")["folder"])
    part = parts_of(run, "grade")
    own, width = dict(part.model.adapters.named_parameters()), part.model.hidden_size
    tensors, base = load_file(folder / "adapter_model.safetensors"), load_file(folder / "_base" / "model.safetensors")
    a, b = (own[f"grade.layers.1.attention.qkv.{kind}"] for kind in "AB")
    for number, kind in enumerate(("query", "key", "value")):
        stem = f"{PREFIX}encoder.layer.1.attention.self.{kind}"
        assert tensors[f"{stem}.lora_A.weight"].equal(a)
        assert tensors[f"{stem}.lora_B.weight"].equal(b[number * width : (number + 1) * width])
    for ours, theirs in (("norm", "output.LayerNorm"), ("attention_norm", "attention.output.LayerNorm")):
        for kind in ("weight", "bias"):
            assert tensors[f"{PREFIX}encoder.layer.0.{theirs}.{kind}"].equal(own[f"grade.layers.0.{ours}.{kind}"])
    assert len(tensors) == 2 * (6 * 2 + 2 * 2)
    weight = part.model.encoder.get_parameter("layers.1.up.weight")
    assert base["encoder.layer.1.intermediate.dense.weight"].equal(weight)  # the run's, without adapters
    assert not weight.equal(open_run(run).recipe.backbone.load(5).encoder.get_parameter("layers.1.up.weight"))


def test_the_code_of_the_cards_runs(
    run: Path, peft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = Path(export(run, "peft", out=tmp_path / "out")["folder"])
    printed = run_card(folder / "kind", monkeypatch, capsys, tmp_path)
    assert "'label': " in printed[0] and printed[-1] == "torch.Size([2, 32])"
    whole = (folder / "README.md").read_text()
    assert "(kind/README.md)" in whole and "`_base`" in whole
    text = (folder / "kind" / "README.md").read_text()
    assert "library_name: peft" in text and "encoder in `../_base` and to no other" in text


def test_peft_and_transformers_load_it_by_their_own_means(
    run: Path, peft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AutoPeftModel, and by AutoModel of the folder alone, which finds the base; norms are loaded by both."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(export(run, "peft", tasks=["grade"], out=tmp_path / "out")["folder"])
    ids = AutoTokenizer.from_pretrained(folder / "_base")(TEXTS[:8], padding=True, return_tensors="pt", truncation=True)
    wanted = parts_of(run, "grade").portable.encoder
    with torch.inference_mode(), inside(folder, monkeypatch):
        hidden = wanted(ids["input_ids"], ids["attention_mask"], torch.zeros_like(ids["input_ids"]))
        for kind in (peft.AutoPeftModelForFeatureExtraction, AutoModel):
            found = kind.from_pretrained(".").eval()(**ids).last_hidden_state
            error = (found - hidden)[ids["attention_mask"].bool()].abs().max()
            assert float(error) < 1e-5
        merged = peft.PeftModel.from_pretrained(AutoModel.from_pretrained("_base"), ".").merge_and_unload()
        plain = merged.state_dict()
    for name, tensor in parts_of(run, "grade").portable.tensors.items():
        assert torch.allclose(plain[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("on", [["down"], ["out"], ["qkv"]])
def test_only_the_modules_that_have_adapters_get_some(on: list[str], peft: Any, tmp_path: Path) -> None:
    """`output.dense` would be taken for attention.output.dense as well: modules are named whole."""
    adapters = {"rank": 2, "on": on, "layers": "last 1", "norms": False}
    run = make_run(tmp_path, "joint", {}, adapters=adapters, **MAKE)
    folder = Path(export(run, "peft", tasks=["kind"])["folder"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert all(name.startswith("encoder.layer.1.") for name in config["target_modules"])
    assert len(config["target_modules"]) == (3 if on == ["qkv"] else 1)
    found = benchmark.differences(run, "peft", folder, {"kind": list(TEXTS)})
    assert max(found["kind"].values()) < 1e-5


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra"])
def test_other_families_have_names_of_their_own(family: str, peft: Any, tmp_path: Path) -> None:
    import transformers

    write_family(transformers, family, tmp_path / "weights")
    backbone = {"name": "bert", "weights": str(tmp_path / "weights"), "max_length": 24}
    run = make_run(tmp_path, "joint", {}, backbone=backbone, adapters={"rank": 2}, **MAKE)
    folder = Path(export(run, "peft", tasks=["kind"])["folder"])
    found = benchmark.differences(run, "peft", folder, {"kind": list(TEXTS)})
    assert max(found["kind"].values()) < 1e-5


# ------------------------------------------------------------------------------------------- what is wrong is not kept


def _exchanged(files: PeftFiles) -> PeftFiles:
    """Rows of queries for those of keys."""
    stem = f"{PREFIX}encoder.layer.0.attention.self"
    query, key = f"{stem}.query.lora_B.weight", f"{stem}.key.lora_B.weight"
    return PeftFiles(files.config, {**files.tensors, query: files.tensors[key], key: files.tensors[query]})


def _scaled(files: PeftFiles) -> PeftFiles:
    return PeftFiles({**files.config, "lora_alpha": 1}, files.tensors)


def _norms_left_out(files: PeftFiles) -> PeftFiles:
    return PeftFiles({**files.config, "modules_to_save": None}, files.tensors)


@pytest.mark.parametrize("spoil", [_exchanged, _scaled, _norms_left_out])
def test_files_that_make_another_encoder_are_not_kept(
    spoil: Callable[[PeftFiles], PeftFiles], run: Path, peft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "peft_files", lambda *arguments: spoil(peft_files(*arguments)))
    with pytest.raises(MachineError, match="nothing was kept"):
        export(run, "peft", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["transformers", "onnx", "sentence-transformers", "peft"])
def test_an_export_without_the_adapters_is_not_kept(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared with the adapters' own path, not with what was merged for it."""
    monkeypatch.setattr(Adapters, "merged_copy", lambda self, task, encoder: encoder)
    with pytest.raises(MachineError, match="nothing was kept"):
        export(run, form, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_peft_the_files_are_compared_all_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(exporting, "load_peft", lambda: None)
    export(run, "peft", out=tmp_path / "out", say=said.append)
    line = "peft is not installed: it is not tried on what is exported; pip install 'mtmeta[peft]'"
    assert [text for text in said if "installed" in text] == [line]
    monkeypatch.setattr(exporting, "peft_files", lambda *arguments: _exchanged(peft_files(*arguments)))
    with pytest.raises(MachineError, match=r"query.weight' with the adapters written is"):
        export(run, "peft", out=tmp_path / "other")


def test_a_run_without_adapters_has_none(tmp_path: Path, capsys: Capture) -> None:
    mtmeta.run(quick(tmp_path, training={"steps": 1}), out=tmp_path / "run", device="cpu")
    outcome = call("export", "run", "--format", "peft", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--format peft: this run has no adapters; use --format transformers")
    assert not (tmp_path / "run" / "export").exists()


# -------------------------------------------------------------------------------------------------------- dry runs


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_a_dry_run_finds_no_obstacles(encoder: str, tmp_path: Path, capsys: Capture) -> None:
    assert planned(quick(tmp_path, adapters={"rank": 2, "encoder": encoder}), capsys) == ({}, "")


def test_a_dry_run_tells_what_peft_could_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The plan looks at the adapters, and at the encoder that has them in it."""
    recipe, portable = quick(tmp_path, adapters={"rank": 2}), Bert.portable
    monkeypatch.setattr(Bert, "portable", lambda self, loaded: replace(portable(self, loaded), names={}))
    found, line = planned(recipe, capsys)
    assert set(found) == {"peft"}
    assert "does not say under which name 'layers.0.attention.qkv.weight' is exported (Portable.names)" in line
    monkeypatch.setattr(Bert, "portable", portable)
    looked = []

    def merged_copy(self: Adapters, task: str, encoder: Any) -> Any:
        looked.append(task)
        return encoder

    monkeypatch.setattr(Adapters, "merged_copy", merged_copy)
    planned(recipe, capsys)
    assert looked == ["kind", "kind"]  # by --json, and for people
