"""`mtmeta export`: other libraries predict from a run's folder as `mtmeta predict` does."""

from __future__ import annotations

import json
import logging
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from torch import nn

import mtmeta
from benchmarks import export as benchmark
from mtmeta.core.export.check import pad
from mtmeta.core.export.export import FORMATS, export, load_part
from mtmeta.core.export.heads import describe_tasks
from mtmeta.core.export.model_card import TEMPLATE
from mtmeta.core.export.onnx_graphs import task_graphs
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.request import RunRequest
from mtmeta.plugins.tasks.sst import Sst
from tests.support.quick import quick

PAIR = {"train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4}
TASKS: dict[str, dict[str, Any]] = {
    "same": {"task": "para", **PAIR},
    "same-cross": {"task": "para", "pair_mode": "cross", **PAIR},
    "same_both": {"task": "para", "orders": "both", **PAIR},
    "same-cross-both": {"task": "para", "pair_mode": "cross", "orders": "both", **PAIR},
    "near": {"task": "similarity", "label": "is_duplicate", "high": 3, **PAIR},
    "near_none": {"task": "similarity", "label": "is_duplicate", "activation": "none", "low": -1, **PAIR},
    "near_cross": {"task": "similarity", "label": "is_duplicate", "pair_mode": "cross", "orders": "both", **PAIR},
    "near_both": {"task": "similarity", "label": "is_duplicate", "orders": "both", **PAIR},
    "three": {"task": "pair_classification", "label": "is_duplicate", "labels": ["0", "1", "caf\u00e9 | `x`"], **PAIR},
    "type": {"task": "sts", "train": "sample", "dev": "sample"},  # nn.ModuleDict would not take this name
}
WORDS = (
    "a film that never ends , and nobody knows why \u00e9t\u00e9 \u4e2d\u6587 unaccustomed-ness good bad plot".split()
)
TEXTS = [" ".join((WORDS[i:] + WORDS)[: 1 + 3 * i % 19]) for i in range(40)]  # up to more than max_length
PAIRS = [(TEXTS[i], TEXTS[(7 * i + 3) % 40]) for i in range(40)]


def make_run(folder: Path, algorithm: str, tasks: dict[str, dict[str, Any]], **changes: Any) -> Path:
    """A run on the tiny encoder of the two quick tasks and `tasks`."""
    recipe = json.loads(quick(folder, algorithm, **changes).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{1 - i % 2}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe["tasks"] |= tasks
    recipe["training"]["precision"] = "fp32"  # as other libraries compute
    (folder / "r.yaml").write_text(json.dumps(recipe))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every generic task, in both modes of pairs, on one encoder."""
    training = {"training": {"steps": 1}}
    return make_run(tmp_path_factory.mktemp("joint"), "joint", TASKS, **training)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tasks have an encoder each."""
    return make_run(tmp_path_factory.mktemp("individual"), "individual", {"same": TASKS["same"]})


@pytest.fixture(scope="module")
def texts(run: Path) -> dict[str, list[Any]]:
    """Texts or pairs for each task of both runs."""
    predictor = mtmeta.load(run, device="cpu")
    return {n: TEXTS if predictor.task(n).inputs == "single" else PAIRS for n in predictor.tasks}


@contextmanager
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if Python was started in a folder; its modules are forgotten afterwards."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield
    for name in ("modeling", "inference"):
        sys.modules.pop(name, None)


def answers_of_export(
    run: Path, form: Any, task: str, texts: Sequence[Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Export one task of a run as transformers or onnx, and return what the exported code predicts."""
    folder = mtmeta.export(run, form, tasks=[task], out=out).folder
    with inside(folder, monkeypatch):
        if form == "transformers":
            model = __import__("modeling").MultiTaskModel.from_folder(".")
        else:
            model = __import__("inference").OnnxModel(".")
        answers: list[dict[str, Any]] = model.predict(task, texts)
        return answers


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: Path) -> list[str]:
    """Return the lines that the code blocks of a model card print, each run as a program in its folder."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    capsys.readouterr()
    with inside(folder, monkeypatch):
        for number, block in enumerate(blocks):
            (at / f"block{number}.py").write_text(block)
            runpy.run_path(str(at / f"block{number}.py"))
    return capsys.readouterr().out.splitlines()


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(folder: Path) -> Any:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# ------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def for_transformers(run: Path) -> Path:
    return Path(export(run, "transformers")["folder"])


def test_transformers_loads_the_encoder_whole(run: Path, for_transformers: Path) -> None:
    """No tensor is missing or left over; tokens and mean-pooled hidden states are those of the run."""
    from transformers import AutoModel, AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(for_transformers)
    encoder, said = AutoModel.from_pretrained(for_transformers, output_loading_info=True)
    assert type(encoder) is BertModel
    assert {key: list(value) for key, value in said.items() if value} == {}
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert tokenizer.model_max_length == batch["input_ids"].shape[1] == 16
    with torch.inference_mode():
        hidden = encoder(**batch).last_hidden_state
    weights = batch["attention_mask"][:, :, None]
    vectors = (hidden * weights).sum(1) / weights.sum(1)

    from mtmeta.core.data.loading import from_texts

    session = open_run(run, RunRequest(device="cpu"))
    part = load_part(session, session.groups[0], ["kind"], "sentence-transformers")
    model = part.model
    dataset = from_texts("kind", model.tasks["kind"], TEXTS, [], part.backbone)
    ids, mask, _ = pad(dataset.stores, range(len(TEXTS)))
    np.testing.assert_array_equal(batch["input_ids"] * batch["attention_mask"], ids)
    np.testing.assert_array_equal(batch["attention_mask"], mask)
    with torch.inference_mode():
        wanted = model.eval().pooled("kind", _packed(dataset))[:, 0]
    assert float((vectors - wanted).abs().max()) < 1e-5


def _packed(dataset: Any) -> Any:
    from mtmeta.core.data.packing import pack_sequences

    return pack_sequences(dataset.stores, np.arange(len(dataset)))


def test_modeling_predicts_what_mtmeta_predicts(run: Path, for_transformers: Path, texts: dict[str, Any]) -> None:
    """Of every kind of head and objective, with texts and pairs that are cut, labels and names included."""
    differences = benchmark.differences(run, "transformers", for_transformers, texts)
    assert list(differences) == ["kind", "grade", *TASKS]
    assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5


def test_the_folder_holds_these_files(run: Path, for_transformers: Path) -> None:
    encoder = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    heads = {"heads.json", "heads.safetensors", "modeling.py"}
    names = {*encoder, *heads, "vocab.txt", "README.md", "export.json"}
    assert {path.name for path in for_transformers.iterdir()} == names
    manifest = json.loads((for_transformers / "export.json").read_text())
    assert set(manifest["files"]) == names - {"export.json"}
    assert manifest["format"] == "transformers" and manifest["tasks"] == ["kind", "grade", *TASKS]
    assert all(0 <= value < 1e-5 for value in manifest["differences"].values())
    assert for_transformers == run / "export" / "transformers"


def test_the_card_has_the_figures_and_its_code_runs(
    run: Path,
    for_transformers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = run_card(for_transformers, monkeypatch, capsys, tmp_path)
    assert len(printed) == len(TASKS) + 2 + 1
    assert "'label': " in printed[0] and printed[-1] == "torch.Size([2, 32])"
    text, summary = (for_transformers / "README.md").read_text(), json.loads((run / "summary.json").read_text())
    score = summary["tasks"]["kind"]
    assert (
        f"| `kind` | accuracy | {score['value']:.4f} | {score['low']:.4f} to {score['high']:.4f} | 12 | dev |" in text
    )
    assert f"{summary['examples']:,} example-forwards" in text and "seed 5;" in text
    assert str(run.parent) not in text  # where the files lay is the user's own affair
    front = front_matter(for_transformers)
    results = {result["task"]["name"]: result for result in front["model-index"][0]["results"]}
    assert results["kind"]["metrics"][0] == {"type": "accuracy", "value": round(score["value"], 4), "name": "accuracy"}


def test_a_run_whose_dev_split_is_taken_out_of_its_training_file(tmp_path: Path) -> None:
    carved = {"dev": {"fraction": 0.3}, "train": "pairs.tsv", "batch_size": 4}
    run = make_run(tmp_path, "joint", {"pairs": {"task": "para", **carved}}, training={"steps": 1})
    for form in ("transformers", "sentence-transformers"):
        export(run, form, tasks=["pairs"])
        text = (run / "export" / f"{form}-pairs" / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n")[1])
        (result,) = front["model-index"][0]["results"]
        assert result["dataset"] == {"type": "pairs", "name": "pairs.tsv", "split": "dev"}
        recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
        assert recipe["tasks"]["pairs"]["train"] == "pairs.tsv" and str(tmp_path) not in text
        assert recipe["tasks"]["pairs"]["dev"] == {"fraction": 0.3, "together": "example", "seed": 5}


def test_the_card_is_given_all_that_its_template_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"card_data"}

    def from_template(data: ModelCardData, template_path: str, **values: Any) -> str:
        given.update(values)
        return ""

    monkeypatch.setattr(ModelCard, "from_template", from_template)
    export(run, "sentence-transformers", tasks=["kind"], out=tmp_path / "out")
    assert find_undeclared_variables(Environment().parse(TEMPLATE.read_text(encoding="utf-8"))) == given


def test_one_task_and_encoders_of_their_own(apart: Path, tmp_path: Path, texts: dict[str, Any]) -> None:
    """Each task's own encoder is in its own folder; with one task there is but one, and nothing above it."""
    given = {name: texts[name] for name in ("kind", "grade", "same")}
    document = export(apart, "transformers", out=tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {*given, "README.md", "export.json"}
    assert document["tasks"] == list(given)
    differences = benchmark.differences(apart, "transformers", tmp_path / "all", given)
    assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5
    weights = {(tmp_path / "all" / name / "model.safetensors").read_bytes() for name in given}
    assert len(weights) == 3
    assert "(same/README.md)" in (tmp_path / "all" / "README.md").read_text()
    alone = Path(export(apart, "transformers", tasks=["grade"])["folder"])
    assert alone == apart / "export" / "transformers-grade"
    assert json.loads((alone / "heads.json").read_text())["tasks"].keys() == {"grade"}
    assert (alone / "model.safetensors").read_bytes() == (tmp_path / "all/grade/model.safetensors").read_bytes()


# --------------------------------------------------------------------------------------------------------------- ONNX


ONNX_TASKS = ["kind", "grade", "same-cross", "same_both", "same-cross-both", "near"]


@pytest.fixture(scope="module")
def for_onnx(run: Path) -> Path:
    return Path(export(run, "onnx", tasks=ONNX_TASKS, out=run.parent / "onnx")["folder"])


@pytest.mark.slow
def test_onnx_graphs_predict_what_mtmeta_predicts(run: Path, for_onnx: Path, texts: dict[str, Any]) -> None:
    """In batches of 32 and 8 and of other lengths than those traced, one or two sequences, with pairs that are cut."""
    differences = benchmark.differences(run, "onnx", for_onnx, {name: texts[name] for name in ONNX_TASKS})
    assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5
    manifest = json.loads((for_onnx / "export.json").read_text())
    assert list(manifest["differences"]) == ONNX_TASKS and max(manifest["differences"].values()) < 1e-5


def test_onnx_graphs_take_any_batch_and_length_and_tell_nothing_of_this_machine(for_onnx: Path) -> None:
    import onnx

    data = (for_onnx / "near.onnx").read_bytes()
    graph = onnx.load_from_string(data).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert shapes == {n: ["batch", "length"] for n in names} | {f"{n}_2": ["batch", "length_2"] for n in names}
    assert [value.name for value in graph.output] == ["logits", "score"]
    assert b"mtmeta/core" not in data and str(Path(torch.__file__).parent).encode() not in data
    assert len(data) < 1.5 * (for_onnx / "grade.onnx").stat().st_size  # two encoders, one set of weights


def test_labels_of_onnx_graphs_and_the_cards_code(
    for_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = json.loads((for_onnx / "labels.json").read_text())
    assert labels["max_length"] == 16
    assert labels["tasks"]["kind"] == {
        "file": "kind.onnx",
        "inputs": "single",
        "objective": "classification",
        "labels": ["no", "yes"],
        "outputs": ["logits", "probabilities"],
    }
    assert labels["tasks"]["near"]["high"] == 3
    assert [name for name, task in labels["tasks"].items() if "orders" in task] == ["same_both", "same-cross-both"]
    assert "| `same-cross-both.onnx` | a pair in one sequence, and swapped in a second |" in card_of(for_onnx)
    assert len(run_card(for_onnx, monkeypatch, capsys, tmp_path)) == len(ONNX_TASKS)


def test_the_exporter_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's talk to its own developers is kept from the user, and the log is as it was."""
    before = logging.root.manager.disable
    (graph,) = task_graphs(_Doubling(), {"a": nn.Linear(3, 5)}, {"a": Sst(train="sample")})
    assert [value.name for value in graph[1].graph.output] == ["logits", "probabilities"]
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


class _Doubling(nn.Module):
    """Ids [N, T] to hidden states [N, T, 3]."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return torch.stack([ids, mask, types], dim=-1).float() * 2


# ---------------------------------------------------------------------------------------------- sentence-transformers


@pytest.fixture(scope="module")
def for_sentence_transformers(run: Path) -> Path:
    return Path(export(run, "sentence-transformers", out=run.parent / "st")["folder"])


def test_sentence_transformers_encodes_to_the_mean_pooled_vectors(
    run: Path,
    for_sentence_transformers: Path,
    tmp_path: Path,
    texts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = for_sentence_transformers
    differences = benchmark.differences(
        run, "sentence-transformers", folder, {"kind": texts["kind"], "same": texts["same"]}
    )
    assert max(differences["kind"]["vectors"], differences["same"]["vectors"]) < 1e-5
    assert not list(folder.glob("heads*"))
    assert run_card(folder, monkeypatch, capsys, tmp_path)
    assert front_matter(folder)["library_name"] == "sentence-transformers"


# ---------------------------------------------------------------------------------------------------------- real data


def test_256_real_sentences_and_pairs_of_each_task(
    run: Path, for_transformers: Path, for_onnx: Path, for_sentence_transformers: Path, real_data: Path
) -> None:
    """Real texts, most of them longer than this encoder takes, through all three formats."""
    files = {"kind": "sst", "grade": "sst", "same-cross": "para", "near": "sts"}
    columns = {"sst": ["sentence"], "para": ["sentence1", "sentence2"], "sts": ["sentence1", "sentence2"]}
    given = {n: benchmark.read_texts(real_data / f"{file}-dev.csv", columns[file], 256) for n, file in files.items()}
    assert {len(texts) for texts in given.values()} == {256}
    folders = {"transformers": for_transformers, "onnx": for_onnx, "sentence-transformers": for_sentence_transformers}
    for form, folder in folders.items():
        for name, of_task in benchmark.differences(run, form, folder, given).items():
            assert max(of_task.values()) < 1e-5, (form, name)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of the paper's three tasks from the encoder inside the package."""
    folder = tmp_path_factory.mktemp("pretrained")
    files = {"train": "sample", "dev": "sample", "batch_size": 4}
    tasks = {"sst": files, "para": {**files, "pair_mode": "cross"}, "sts": files}
    recipe = {"name": "p", "tasks": tasks, "backbone": "bert", "algorithm": "joint", "reporters": ["jsonl"]}
    recipe |= {"optimizer": {"name": "adamw", "lr": 1e-4}, "data_root": str(folder)}
    recipe |= {"training": {"steps": 1, "precision": "fp32"}}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


@pytest.mark.slow
def test_256_real_sentences_of_a_pretrained_encoder(
    pretrained: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs differ by less than 1e-5, and 1e-4 by onnxruntime, as `python -m benchmarks.export` prints it."""
    benchmark.main(["--data", str(real_data), "--run", str(pretrained), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["texts"] == {"sst": 256, "para": 256, "sts": 256}
    assert list(printed["differences"]) == [
        form for form in FORMATS if form not in ("peft", "text-classification")
    ]  # it has no adapters, and no such heads
    for form, tasks in printed["differences"].items():
        for of_task in tasks.values():
            assert max(of_task.values()) < (1e-4 if form == "onnx" else 1e-5), (form, tasks)


# -------------------------------------------------------------------------------------------------------- description


def test_only_heads_and_objectives_of_ours_are_described() -> None:
    """A head or objective of a plugin's own may compute anything: it is refused by name, all of them at once."""

    class Own(mtmeta.MLPHead):
        pass

    class Odd(mtmeta.Classification):
        pass

    class OddTask(Sst):
        objective = Odd(labels=5)

    plain, odd = Sst(train="sample"), OddTask(train="sample")
    heads: dict[str, nn.Module] = {
        "a": Own(8, outputs=5),
        "b": mtmeta.MLPHead(8, outputs=5),
        "c": mtmeta.MLPHead(8, outputs=5),
    }
    with pytest.raises(mtmeta.Problems) as raised:
        describe_tasks({"a": plain, "b": plain, "c": odd}, heads, alone=False)
    first, second = map(str, raised.value.problems)
    assert "task 'a' has a head of its own, Own, which cannot be exported" in first
    assert "task 'c' has an objective of its own, Odd, which cannot be exported" in second
    assert first.endswith("; leave it out with --task")
    with pytest.raises(mtmeta.PluginError) as alone:  # there is no other to be chosen
        describe_tasks({"c": odd}, heads, alone=True)
    assert str(alone.value).endswith("has an objective of its own, Odd, which cannot be exported")
    assert describe_tasks({"b": plain}, heads, alone=True)["b"]["head"] == {"kind": "mlp", "outputs": 5, "vectors": 1}
