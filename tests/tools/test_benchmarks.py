"""The benchmarks measure what they say: padded is packed, FLOPs and ratios by hand, and the JSON has its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import leopard
from benchmarks.backbones import main as backbones
from benchmarks.contenders import Mtmeta, Rival, mtmeta_padded, transformers
from benchmarks.data import large_file
from benchmarks.meta import PIECES, Clock
from benchmarks.multi_output import sides_of
from benchmarks.padded import masked_mean, pad, padded_forward
from benchmarks.parts import Parts, by_length, first_rows, load_backbone, load_dataset, load_parts, make_task
from benchmarks.precision import FIELD, summary
from benchmarks.predict import FIELD as PREDICTED
from benchmarks.predict import read_sentences
from benchmarks.predict import summary as predict_summary
from benchmarks.profile import profile_step
from benchmarks.quality import compare_predictions, compare_scores, largest_differences
from benchmarks.scaling import TINY, point, synthetic
from benchmarks.scaling import main as scaling
from benchmarks.stats import instructions, layer_weights, ratios, spread, step_flops
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.errors import UsageError
from mtmeta.core.studies.adapt import over_draws
from mtmeta.core.training.model import mean_pool
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder import kernels
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The tiny encoder without dropout, on sample data."""
    torch.set_num_threads(1)
    return load_parts("tiny", "sample", ["sst", "para", "sts"], splits=("train", "dev"), dropout=0.0)


def run(module: str, *arguments: str) -> Any:
    """The JSON document that a benchmark prints, and nothing else, on stdout."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MTMETA_DATA": "", "MTMETA_MINILM": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", ["sst", "para"])
def test_padded_forward_is_the_packed_encoder(parts: Parts, task: str) -> None:
    indices = np.arange(17)
    stores = parts.datasets[task, "train"].stores
    with torch.no_grad():
        packed = pack_sequences(stores, indices)
        wanted = mean_pool(parts.encoder(packed), packed)
        batches = [pad(store, indices) for store in stores]
        found = torch.cat([masked_mean(padded_forward(parts.encoder, each), each.mask) for each in batches])
    assert float((found - wanted).abs().max()) < 1e-5


def test_pad_by_hand(parts: Parts) -> None:
    (store,) = parts.datasets["sst", "train"].stores
    indices = np.array([5, 2])
    made = pad(store, indices)
    for row, index in enumerate(indices):
        sequence = store.ids[store.offsets[index] : store.offsets[index + 1]].tolist()
        assert made.ids[row][made.mask[row]].tolist() == sequence
        assert made.ids[row].tolist() == sequence + [0] * (made.ids.shape[1] - len(sequence))


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_contenders_learn_the_same(parts: Parts, task: str) -> None:
    """Three steps of each from the same weights on the same batches."""
    field: Sequence[Mtmeta | Rival] = (Mtmeta(parts, task), mtmeta_padded(parts, task), transformers(parts, task))
    batches = [np.arange(start, start + 16) for start in (0, 16, 32)]
    losses = np.array([[each.step(indices) for indices in batches] for each in field])
    assert np.ptp(losses, axis=0).max() < 1e-5
    dev = first_rows(parts.datasets[task, "dev"], 40)
    predictions = np.array([each.evaluate(dev) for each in field])
    assert predictions.shape == (3, 40)
    assert np.ptp(predictions, axis=0).max() < 1e-4


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bf16_contenders_learn_about_the_same(parts: Parts, attention: str) -> None:
    """To the digits of bf16, and not to more: each of them computes in it."""
    batches = [np.arange(start, start + 16) for start in (0, 16, 32)]

    def losses(contender: Mtmeta | Rival) -> Any:
        return np.array([contender.step(indices) for indices in batches])

    fp32 = losses(transformers(parts, "sst"))
    ours = losses(Mtmeta(parts, "sst", precision="bf16"))
    theirs = losses(transformers(parts, "sst", attention, "bf16"))
    for found in (ours, theirs):
        assert 0 < np.abs(found / fp32 - 1).max() < 2e-2


def test_one_pass_and_a_pass_for_each_label_learn_the_same() -> None:
    one, each = sides_of("tiny", "sample", "fp32", dropout=0.0)
    assert list(one.datasets) == ["whole"] and list(each.datasets) == ["grade", "polarity", "long"]
    for start in (0, 16):
        for side in (one, each):
            side.step(np.arange(start, start + 16))
        losses = [float(sum(loss for _, _, loss in side.learner.losses)) for side in (one, each)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert one.evaluate(np.arange(8)) > 0


def test_by_length_keeps_the_examples(parts: Parts) -> None:
    dev = first_rows(parts.datasets["para", "dev"], 20)
    made = by_length(dev)
    lengths = np.sum([store.lengths for store in made.stores], axis=0)
    assert (np.diff(lengths) >= 0).all()
    assert sorted(made.ids) == sorted(dev.ids) and list(made.ids) != list(dev.ids)


def test_precision_summary_by_hand() -> None:
    """Two rounds; the second setting of transformers is the faster one."""
    times = {name: [8.0, 8.0] for name in FIELD}
    times |= {"mtmeta": [6.0, 9.0], "mtmeta_bf16": [2.0, 3.0], "transformers_bf16_sdpa_grouped": [4.0, 6.0]}
    found = summary(times, flops=[120, 120], rates=[100.0, 100.0])
    assert found["transformers_best"] == "transformers_bf16_sdpa_grouped"
    assert found["ratio_vs_fp32"] == 3.0 and found["ratio_vs_transformers_best"] == 2.0
    assert found["fraction_of_gemm_bound"] == 0.5  # 1.2 s at that rate: 0.6 and 0.4 of the steps
    assert found["ratio_vs_transformers"] == pytest.approx((8 / 2 + 8 / 3) / 2, abs=1e-3)


def test_instructions_are_those_among_the_flags() -> None:
    assert instructions("fpu sse2 amx_bf16 avx2 avx512_bf16_not") == ["avx2", "amx_bf16"]
    assert instructions("") == []


def test_flops_by_hand() -> None:
    config = BertConfig(vocab_size=100, hidden_size=4, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    # a layer: query, key, value and output 4 x 4 each, up 4 x 8, down 8 x 4
    assert layer_weights(config) == 3 * (4 * 16 + 32 + 32) == 384
    assert step_flops(config, tokens=10) == 6 * 10 * 384


def test_layer_weights_are_those_of_the_encoder(parts: Parts) -> None:
    matrices: list[Tensor] = [p for p in parts.encoder.layers.parameters() if p.ndim == 2]
    assert layer_weights(parts.config) == sum(p.numel() for p in matrices)


def test_spread_and_ratios_by_hand() -> None:
    made = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (made.median, made.low, made.high, made.rounds) == (3.0, 2.0, 4.0, 5)
    # the median of the ratios 2, 3, 1, not the ratio of the medians
    assert ratios([2.0, 9.0, 100.0], [1.0, 3.0, 100.0]).median == 2.0
    assert made.json("x") == {"x": 3.0, "x_quartiles": [2.0, 4.0]}


@pytest.mark.slow
def test_quick_json_has_its_keys() -> None:
    quick = ("--quick", "--data", "sample", "--weights", "tiny", "--batch", "8", "--seconds", "1")
    found = run("train", "--tasks", "sst,para", *quick)
    assert {"cpu", "cores", "threads", "torch", "transformers", "python"} <= set(found["machine"])
    assert list(found["tasks"]) == ["sst", "para"]
    for task, values in found["tasks"].items():
        assert values["rounds"] >= 1
        for key in (
            "train_examples_per_s",
            "ratio_vs_transformers_padded",
            "ratio_vs_transformers_grouped",
            "ratio_vs_mtmeta_padded",
            "ratio_vs_sentence_transformers",
            "fraction_of_gemm_bound",
            "gemm_gflops",
            "eval_examples_per_s",
            "eval_over_train",
            "eval_ratio_vs_transformers",
        ):
            if (task, key) == ("sst", "ratio_vs_sentence_transformers"):
                assert values[key] is values[f"{key}_quartiles"] is None
            else:
                low, high = values[f"{key}_quartiles"]
                assert 0 < low <= values[key] <= high


@pytest.mark.slow
def test_precision_json_has_its_keys() -> None:
    small = ("--data", "sample", "--weights", "tiny", "--batch", "8", "--rounds", "1", "--rows", "16")
    found = run("precision", "-", "--tasks", "sst", *small)
    assert isinstance(found["machine"]["instructions"], list) and {"load_before", "load_after"} < set(found)
    for kind in ("training", "evaluation"):
        values = found["tasks"]["sst"][kind]
        assert values["rounds"] == 1 and values["transformers_best"] in FIELD
        keys = ("ratio_vs_fp32", "ratio_vs_transformers_best", "fraction_of_gemm_bound")
        for key in (*keys, *(f"ratio_vs_{name}" for name in FIELD[2:])):
            low, high = values[f"{key}_quartiles"]
            assert 0 < low <= values[key] <= high, key
        assert values["ratio_vs_transformers_best"] == min(values[f"ratio_vs_{name}"] for name in FIELD[2:])


def test_sentences_are_distinct_until_there_are_too_few(tmp_path: Path) -> None:
    rows = ("\tid\tsentence1\tsentence2", '0\ta\tOne  text.\tAn "odd one.', "1\tb\tOne text.\tThird.", "")
    (tmp_path / "para-dev.csv").write_text("\n".join(rows))
    distinct = ['An "odd one.', "One text.", "Third."]
    found, repeated = read_sentences(str(tmp_path), 3)
    assert (sorted(found), repeated) == (distinct, 0)
    found, repeated = read_sentences(str(tmp_path), 7)
    assert (sorted(set(found)), found[:3], found[3:6], repeated) == (distinct, found[3:6], found[:3], 2)


def test_predict_summary_by_hand() -> None:
    """Two rounds, the second of half the sentences; the sorted form of a library is its best."""
    times = {name: [4.0, 2.0] for name in PREDICTED} | {"mtmeta_bf16": [1.0, 0.5], "onnx_sorted": [3.0, 1.5]}
    found = predict_summary(times, counts=[100, 50])
    assert found["sentences_each"] == 150 and found["contenders"]["mtmeta_bf16"]["sentences_per_s"] == 100.0
    assert (found["onnx_best"], found["ratio_vs_onnx_best"]) == ("onnx_sorted", 3.0)
    assert (found["ratio_vs_fp32"], found["ratio_vs_sentence_transformers_best"]) == (4.0, 4.0)


@pytest.mark.slow
def test_predict_json_has_its_keys() -> None:
    """Contenders of other libraries give the run's own labels, in its order, sorted by them or not."""
    found = run("predict", "-", "--data", "sample", "--weights", "tiny", "--sentences", "96", "--slice", "48")
    assert (found["rounds"], found["sentences_each"], found["repeated"]) == (2, 96, 0)
    assert set(found["contenders"]) == set(PREDICTED)
    for key in ("ratio_vs_fp32", *(f"ratio_vs_{name}_best" for name in ("onnx", "onnx_int8", "sentence_transformers"))):
        low, high = found[f"{key}_quartiles"]
        assert 0 < low <= found[key] <= high
    assert found["same_labels"]["onnx"] == found["same_labels"]["onnx_sorted"] == 1.0
    assert set(found["whole_command"]) == {"mtmeta", "mtmeta_bf16"}


def test_scores_are_compared_by_hand() -> None:
    found = compare_scores({"fp32": [0.50, 0.60], "bf16": [0.51, 0.63]})
    low, high = found["interval"]
    half = 12.7062 * 0.01  # Student's t of two runs, times a deviation of .01 * sqrt(2) over sqrt(2)
    assert (low, high) == (pytest.approx(0.02 - half, abs=1e-4), pytest.approx(0.02 + half, abs=1e-4))
    assert found["difference"] == pytest.approx(0.02) and found["within_interval"] is True
    assert compare_scores({"fp32": [0.5, 0.6, 0.7], "bf16": [0.6, 0.7, 0.8001]})["within_interval"] is False
    assert compare_scores({"fp32": [0.5], "bf16": [0.6]})["within_interval"] is None


def test_losses_and_predictions_are_compared_by_hand(tmp_path: Path) -> None:
    """Of two steps of two batches each; what comes after the first step does not count."""
    for name, losses, numbers in (("a", (2.0, 4.0, 8.0, 1.0), (1.0, 2.0)), ("b", (2.0, 4.1, 8.0, 9.0), (1.04, 2.06))):
        events: list[dict[str, Any]] = [{"type": "started"}]
        events += [{"type": "step", "step": i + 1, "losses": {"sst": losses[2 * i : 2 * i + 2]}} for i in range(2)]
        (tmp_path / name / "predictions").mkdir(parents=True)
        (tmp_path / name / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        answers = {"sst": ["3", "4"], "para": ["1", "0" if name == "a" else "1"], "sts": list(map(str, numbers))}
        for task, values in answers.items():
            rows = "".join(f"{i},0,{value}\n" for i, value in enumerate(values))
            (tmp_path / name / "predictions" / f"{task}-dev.csv").write_text("id,label,prediction\n" + rows)
    found = largest_differences(tmp_path / "a", tmp_path / "b", steps=1)
    assert found == {"first_steps": pytest.approx(0.025), "first_batches": 0.0}
    shares = compare_predictions(tmp_path / "a", tmp_path / "b")
    assert shares == {"sst": 1.0, "para": 0.5, "sts": 0.5, "all": pytest.approx(4 / 6, abs=1e-4)}


@pytest.mark.slow
def test_quality_reads_what_is_trained(tmp_path: Path) -> None:
    """The second call trains nothing: weights and events are the same files."""
    small = ("--data", "sample", "--weights", "tiny", "--batch", "8", "--examples", "200", "--seeds", "2")
    first = run("quality", "-", *small, "--out", str(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-*/events.jsonl")}
    assert len(files) == 7
    again = run("quality", "-", *small, "--out", str(tmp_path))
    trained = [path for path in files if "used" not in path.parent.name]
    assert len(trained) == 6 and all(path.stat().st_mtime_ns == files[path] for path in trained)
    for key in ("scores", "difference", "interval", "training_seconds", "losses", "predictions", "same_weights"):
        assert again[key] == first[key]
    assert first["losses"]["first_steps"] > 0


def test_backbones_json_has_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--shape", "small", "--tasks", "sst", "--batch", "4", "--rows", "8", "--seconds", "0", "--json")
    backbones(small)
    found = json.loads(capsys.readouterr().out)["tasks"]["sst"]
    assert found["steps"] == 2
    for kind in ("training", "evaluation"):
        assert set(found[kind]) == {"bert", "hf", "ratio", "ratio_quartiles"}
        assert found[kind]["ratio"] > 0


def test_clock_books_every_moment_once() -> None:
    """An iteration from 0 to 10 in which a delta from 2 to 9 holds a gradient from 3 to 7."""
    clock = Clock(now=iter([0.0, 2.0, 3.0, 7.0, 9.0, 10.0]).__next__)
    with clock.piece("loop"), clock.piece("delta"), clock.piece("gradient"):
        pass
    assert clock.iterations == [{"loop": 3.0, "delta": 3.0, "gradient": 4.0}]


def test_meta_books_all_pieces_of_a_run() -> None:
    found = run("meta", "--data", "sample", "--weights", "tiny", "--batch", "8", "--steps", "2")
    for name, values in found["algorithms"].items():
        shares = values["shares"]
        assert tuple(shares) == PIECES
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4)
        assert all(share > 0 for share in shares.values()), name


@pytest.mark.slow
def test_anil_and_fomaml_without_inner_steps_are_one_gradient() -> None:
    """Both contenders have the same weights and query, so loss and gradient without dropout are the same numbers."""
    ours = "mtmeta anil", "mtmeta fomaml"
    small = ("--tasks", "sst", "--weights", "tiny", "--batch", "4", "--rounds", "1", "--kinds", ",".join(ours))
    anil, fomaml = map(run("anil", "--data", "sample", "--steps", "0", *small)["tasks"]["sst"].get, ours)
    for key in ("query_loss", "gradient_norm"):
        assert anil[key] == pytest.approx(fomaml[key], rel=1e-6) and anil[key] > 0
    moved = run("anil", "--data", "sample", "--steps", "2", *small)["tasks"]["sst"]
    assert moved["mtmeta anil"]["query_loss"] != moved["mtmeta fomaml"]["query_loss"]
    assert all(kind["examples_per_s"] > 0 and kind["peak_mib"] > 0 for kind in moved.values())


def test_profile_shares_are_of_everything(parts: Parts) -> None:
    found = profile_step(parts, "sst", batch=8, steps=1)
    assert sum(each["share"] for each in found["operators"]) == pytest.approx(1.0)
    assert 0 < found["gemm_share"] < 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_are_timed_one_by_one(precision: str) -> None:
    if kernels.load() is None:
        pytest.skip("no C compiler that can build the kernels")
    found = run("kernels", "--rounds", "1", "--precision", precision)["milliseconds"]
    assert {"norm", "norm_backward", "gelu", "gelu_backward", "attention", "attention_backward"} < set(found)
    assert min(found.values()) > 0


@pytest.mark.parametrize("kind", ["batch", "length", "tasks"])
def test_scaling_point(kind: str) -> None:
    made = point(kind, 4, 2, TINY)
    assert made[kind] == 4 and made["peak_mib"] > 0


def test_scaling_measures_what_the_command_line_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.scaling.measure", lambda kinds, **options: {"kinds": kinds})
    scaling(["--what", "batch,tasks", "--json"])
    assert json.loads(capsys.readouterr().out) == {"kinds": ["batch", "tasks"]}


def test_synthetic_sequences_have_the_length_asked_for() -> None:
    parts = synthetic(TINY, 2, batch_size=4, length=7)
    assert [set(data.stores[0].lengths.tolist()) for data in parts.datasets.values()] == [{7}, {7}]
    first, second = (data.stores[0].ids for data in parts.datasets.values())
    assert not np.array_equal(first, second)


def test_big_file_is_one_mtmeta_reads(tmp_path: Path) -> None:
    large_file(tmp_path / "sst-train.csv", 1000)
    made = load_dataset("sst", make_task("sst", str(tmp_path)), "train", str(tmp_path), load_backbone("tiny"))
    assert len(made) == 1000 and made.skipped == 0
    assert np.bincount(made.labels.astype(np.int64)).tolist() == [200] * 5


def leopard_part(task: str, plain: Sequence[float], run: Sequence[float], **changes: Any) -> dict[str, Any]:
    """Return what `mtmeta adapt --json` prints of one task with four shots: three starts, `joint` the baseline."""
    values = {"pretrained": plain, "leopard_joint": run, "leopard_reptile": run}
    adapted = [
        {"task": task, "shots": 4, "draw": draw, "start": start, "value": value}
        for start, given in values.items()
        for draw, value in enumerate(given)
    ]
    whole = {"recipe": "new", "head": "reset", "split": "dev", "steps": 3, "starts": list(values), "draws": len(plain)}
    cell = {"task": task, "shots": 4, "metric": "accuracy", "sign": 1, **over_draws(values, 1, "leopard_joint")}
    return whole | {"baseline": "leopard_joint", "adapted": adapted, "cells": [cell]} | changes


def test_leopards_tables_by_hand() -> None:
    first = leopard_part("a", [0.5, 0.5, 0.5], [0.6, 0.6, 0.6])
    second = leopard_part("b", [0.2, 0.3, 0.4], [0.3, 0.3, 0.3])
    whole = leopard.joined([("a.json", first), ("b.json", second)])
    assert leopard.means(whole) == [
        "| task | k | pretrained | joint | reptile |",
        "|---|---:|---|---|---|",
        "| a | 4 | .500 ± .000 | .600 ± .000 | .600 ± .000 |",
        "| b | 4 | .300 ± .100 | .300 ± .000 | .300 ± .000 |",
        "| mean of 2 tasks | 4 | .400 ± .050 | .450 ± .000 | .450 ± .000 |",
    ]
    # the second task's gains are +.1, 0 and -.1: Student's t of three draws makes .1 / 3 ** .5 * 4.303 of them
    assert leopard.differences(whole, "gain") == [
        "| task | k | joint - pretrained | reptile - pretrained |",
        "|---|---:|---|---|",
        "| a | 4 | **+.100 [+.100, +.100]** | **+.100 [+.100, +.100]** |",
        "| b | 4 | +.000 [-.248, +.248] | +.000 [-.248, +.248] |",
        "| mean of 2 tasks | 4 | +.050 [-.074, +.174] | +.050 [-.074, +.174] |",
    ]
    assert leopard.differences(whole, "beside")[::2] == [
        "| task | k | reptile - joint |",
        "| a | 4 | +.000 [+.000, +.000] |",
        "| mean of 2 tasks | 4 | +.000 [+.000, +.000] |",
    ]
    with pytest.raises(UsageError, match=r"b.json: has steps 4, and a.json has 3"):
        leopard.joined([("a.json", first), ("b.json", leopard_part("b", [0.2, 0.2], [0.3, 0.3], steps=4))])
    other: Any
    for other in ({}, [], leopard_part("b", [0.2], [0.3])):
        with pytest.raises(
            UsageError, match=r"b.json: (is not what mtmeta adapt --json prints|takes a --baseline and)"
        ):
            leopard.joined([("a.json", first), ("b.json", other)])
    assert leopard.difference({"mean": 0.0123, "low": 0.0001, "high": 10.25}) == "**+.012 [+.001, +10.250]**"
    assert (leopard.short(-0.05), leopard.short(-20.5, "+")) == ("-.050", "-20.500")
    with pytest.raises(UsageError, match=r"c.json: has a task and number of shots that another file has, too"):
        leopard.joined([("a.json", first), ("c.json", first)])


def test_leopards_means_say_how_many_draws_they_are_of() -> None:
    first, second = leopard_part("a", [0.5, 0.5, 0.5], [0.6, 0.6, 0.6]), leopard_part("b", [0.2, 0.3, 0.4], [0.3] * 3)
    second["adapted"] = [one for one in second["adapted"] if one["draw"]]  # a sample that holds nothing
    whole = leopard.joined([("a.json", first), ("b.json", second)])
    assert leopard.means(whole)[-1] == "| mean of 2 tasks, 2 draws | 4 | .425 ± .035 | .450 ± .000 | .450 ± .000 |"
