"""`mtmeta tune`: the same search however it is cut and shared, what is given up, what fails, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    MachineError,
    MtmetaError,
    RecipeError,
    RunKilled,
    Stopped,
    UsageError,
)
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.html.report import report
from mtmeta.core.reports.terminal.tuning import show_search
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.lock import lock_folder
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.tuning import sampling, search, trial
from mtmeta.core.studies.tuning.figures import importance
from mtmeta.core.studies.tuning.journal import JOURNAL, PLAN, Journal
from mtmeta.core.studies.tuning.progress import Progress
from mtmeta.core.studies.tuning.settings import Recipes
from mtmeta.core.studies.tuning.tune import tune_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import call, quietly
from tests.support.paths import ROOT
from tests.support.quick import quick

optuna = pytest.importorskip("optuna")

SPACE = """\
optimizer.lr: {low: 1e-2, high: 2.0, log: true}
tasks.kind.inner_steps: {low: 1, high: 2}
schedule.name: {choices: [constant, cosine]}
"""
TURN = threading.Lock()
Runner = Callable[..., None]


class Killed(BaseException):
    """Stands in for SIGKILL."""


def in_process(
    jobs: Sequence[Job], *, placement: Any, say: Any, failed: Callable[..., None], stop: StopRequest
) -> None:
    """The runs of a trial without processes of their own."""
    for job in jobs:
        stop.check()
        assert job.threads == 1
        recipe, *options = job.arguments
        overrides = [option.removeprefix("--set=") for option in options if option.startswith("--set=")]
        root = next(option.removeprefix("--data-root=") for option in options if option.startswith("--data-root="))
        try:
            with TURN:  # PyTorch's settings are one for a process
                mtmeta.run(recipe, overrides=overrides, out=job.folder, data_root=root, device="cpu", stop=stop)
        except MtmetaError as error:
            failed(job, error)
    stop.check()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with quietly():
        monkeypatch.setattr(trial, "run_planned", in_process)
        monkeypatch.setattr(search, "POLL", 0.01)
        monkeypatch.setattr(search, "CLAIM", 0.0)
        yield


def study(folder: Path, out: str = "study", space: str = SPACE, **options: Any) -> dict[str, Any]:
    """A search in `folder`."""
    if not (folder / "quick.yaml").exists():
        quick(folder, "reptile")
    (folder / "space.yaml").write_text(space)
    given = {"trials": 4, "seeds": 1, "in_flight": 4, "device": "cpu", **options}
    of_request = {key: given.pop(key) for key in ("device", "stop", "overrides", "block") if key in given}
    return tune_recipe(
        RunRequest(folder / "quick.yaml", out=folder / out, **of_request), folder / "space.yaml", **given
    )


def trials_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found["trials"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search of 14 trials, so that some are suggested by others, that nobody disturbed."""
    folder = tmp_path_factory.mktemp("tune")
    with quietly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "run_planned", in_process)
        patch.setattr(search, "POLL", 0.01)
        patch.setattr(search, "CLAIM", 0.0)
        return folder, study(folder, trials=14)


# ------------------------------------------------------------------------------------------------------- the search


def test_a_search_leaves_a_recipe_that_trains_to_the_same_weights(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    assert [one["number"] for one in trials_of(found)] == list(range(14))
    assert found["counts"]["running"] == found["counts"]["failed"] == 0
    complete = [one for one in trials_of(found) if one["state"] == "complete"]
    assert found["best"] == max(complete, key=lambda one: one["value"])
    number = found["best"]["number"]
    run = folder / "study" / f"trial-{number:04d}" / "seed-5"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["split"], summary["selected_on"]) == ("dev", "dev")
    assert found["best"]["value"] == sum(task["value"] for task in summary["tasks"].values()) / 2
    best = load_recipe(folder / "study" / "best.yaml", build_registry())
    assert best.name == "quick-best"
    assert best.optimizer.lr == found["best"]["settings"]["optimizer.lr"]
    assert (run / "recipe.lock.yaml").read_text().find(digest(best)) > 0


def test_weights_of_the_best_alone_are_kept(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = whole
    kept = sorted(path.parts[-3] for path in (folder / "study").glob("trial-*/seed-*/checkpoints"))
    assert kept == [f"trial-{found['best']['number']:04d}"]
    study(tmp_path, trials=2, keep_weights=True)
    assert len(list((tmp_path / "study").glob("trial-*/seed-*/checkpoints"))) == 2


def test_in_python_recipe_and_space_may_be_objects(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe = mtmeta.read_recipe(whole[0] / "quick.yaml")
    space = strict_yaml.read_file(whole[0] / "space.yaml").data
    options: dict[str, Any] = {"seeds": 1, "in_flight": 4, "device": "cpu"}
    found = mtmeta.tune(recipe, space, trials=3, out=tmp_path / "study", **options)
    assert trials_of(found) == trials_of(whole[1])[:3]
    assert sorted(path.name for path in (tmp_path / "study" / "recipes").iterdir()) == ["quick.yaml", "space.yaml"]
    assert found.best == max(trials_of(found), key=lambda one: one["value"])
    assert found.best_recipe == tmp_path / "study" / "best.yaml"
    table = found.to_pandas()
    assert list(table["value"]) == [one["value"] for one in trials_of(found)]
    assert list(table["schedule.name"]) == [one["settings"]["schedule.name"] for one in trials_of(found)]
    again = mtmeta.tune(recipe, space, trials=3, out=tmp_path / "study", **options)
    assert again == found
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("")
    with pytest.raises(UsageError, match="holds 'notes', and is no study of mtmeta tune"):
        mtmeta.tune(recipe, space, out=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes"]


def test_again_nothing_is_trained(whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = whole
    monkeypatch.setattr(trial, "run_planned", None)
    assert study(folder, trials=14) == found
    assert study(folder, trials=3) == found  # fewer are no fewer than there are


def test_cut_anywhere_and_shared_it_is_the_same_search(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a line of the journal, ten times, with one to three trials under way."""
    shutil.copytree(whole[0], tmp_path / "same", ignore=shutil.ignore_patterns("study"))
    folder = tmp_path / "same"
    (folder / "quick.yaml").write_text((whole[0] / "quick.yaml").read_text())  # the very same data root
    left = [0]

    whole_backend: Any = optuna.storages.journal.JournalFileBackend

    class Dying(whole_backend):  # type: ignore[misc]
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            left[0] -= 1
            if left[0] == 0:
                with open(folder / "study" / JOURNAL, "ab") as file:  # torn in the middle of a line
                    file.write(json.dumps(logs[0]).encode()[:20])
                raise Killed
            super().append_logs(logs)

    monkeypatch.setattr(optuna.storages.journal, "JournalFileBackend", Dying)
    for operations in (1, 2, 3, 5, 8, 4, 6, 7, 9, 2):
        left[0] = operations
        with pytest.raises(Killed):
            study(folder, trials=14, jobs=1 + operations % 3)
    left[0] = 0
    found = study(folder, trials=14, jobs=3)
    assert trials_of(found) == trials_of(whole[1])
    assert found["best"] == whole[1]["best"]


def share() -> None:
    """A process's part in a search; prints what it says, then what came of it."""
    trial.run_planned = in_process
    print(json.dumps(study(Path.cwd(), trials=8, say=lambda text: print(json.dumps(text), flush=True))))


@pytest.mark.slow
def test_two_processes_share_the_trials(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("quick.yaml", "space.yaml"):
        (tmp_path / name).write_text((whole[0] / name).read_text())
    program = f"from {__name__} import share; share()"
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    parts = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, **options) for _ in range(2)]
    printed = [[json.loads(line) for line in part.communicate(timeout=300)[0].splitlines()] for part in parts]
    assert [part.returncode for part in parts] == [0, 0]
    said = [line.split()[1] for lines in printed for line in lines[:-1] if line.startswith("trial ")]
    assert sorted(said) == [f"{number}:" for number in range(8)]  # each once
    assert trials_of(printed[0][-1]) == trials_of(printed[1][-1]) == trials_of(whole[1])[:8]


def test_a_signal_stops_it_where_it_can_go_on(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quick.yaml", "space.yaml"):
        (tmp_path / name).write_text((whole[0] / name).read_text())
    stop = StopRequest()
    count = [0]

    def counting(jobs: Sequence[Job], **options: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            stop.signal = "SIGTERM"
        in_process(jobs, **options)

    monkeypatch.setattr(trial, "run_planned", counting)
    with pytest.raises(Stopped, match=r"with [0-3] of 6 trials done") as stopped:
        study(tmp_path, trials=6, stop=stop)
    assert stopped.value.exit_code == 75
    assert trials_of(study(tmp_path, trials=6)) == trials_of(whole[1])[:6]


# ------------------------------------------------------------------------------------------------------ what it tries


def frozen(space: Any, values: dict[str, Any], number: int, **options: Any) -> Any:
    kinds = sampling.distributions(space)
    made = optuna.trial.create_trial(params=values, distributions={key: kinds[key] for key in values}, **options)
    made.number = number
    return made


@pytest.fixture
def space(tmp_path: Path) -> Any:
    from mtmeta.core.studies.tuning.space import read_space

    (tmp_path / "s.yaml").write_text("x: {low: -5.0, high: 5.0}\ny: {low: 1e-3, high: 1.0, log: true}\n")
    return read_space(tmp_path / "s.yaml")


def simulated(space: Any, count: int, in_flight: int, seed: int = 1) -> list[Any]:
    made: list[Any] = []
    for number in range(count):
        seen = sampling.as_seen(made, number, in_flight)
        values = sampling.suggest(space, seed, seen)
        value = -((values["x"] - 2) ** 2) - abs(values["y"] - 0.1)
        made.append(frozen(space, values, number, value=value))
    return made


def test_suggestions_are_a_function_of_seed_number_and_outcomes(space: Any) -> None:
    made = simulated(space, 16, 4)
    assert [one.params for one in made] == [one.params for one in simulated(space, 16, 4)]
    assert len({tuple(one.params.values()) for one in made}) == 16
    assert made[0].params != simulated(space, 1, 4, seed=2)[0].params
    # the outcomes of the last three do not count, those before do
    changed = [*made[:13], *(frozen(space, one.params, one.number, value=9.0) for one in made[13:])]
    suggest: Any = lambda trials: sampling.suggest(space, 1, sampling.as_seen(trials, 16, 4))  # noqa: E731
    assert suggest(changed) == suggest(made)
    changed = [*made[:12], frozen(space, made[12].params, 12, value=9.0), *made[13:]]
    assert suggest(changed) != suggest(made)


def test_a_search_finds_more_than_chance(space: Any) -> None:
    made = simulated(space, 40, 4)
    assert max(one.value for one in made[20:]) > max(one.value for one in made[:10])
    assert sum(one.value for one in made[30:]) > sum(one.value for one in made[:10])


def test_importance_tells_what_matters_from_what_does_not(space: Any) -> None:
    made = [frozen(space, one.params, one.number, value=one.params["x"]) for one in simulated(space, 40, 40)]
    found = importance(made)
    assert found is not None
    x, y = found["keys"]["x"], found["keys"]["y"]
    assert x["value"] + y["value"] == pytest.approx(1)
    assert x["value"] > x["chance"]
    assert y["value"] <= y["chance"]
    for row in (x, y):
        assert 0 <= row["low"] <= row["high"] <= 1
    assert importance(made[:19]) is None


def judged(kind: Any, values: dict[int, float], space: Any, *, seeds: int = 1) -> list[int]:
    """Steps at which a trial with these values is given up, beside seven with the values 1, 2, 3, ..."""
    others = [
        frozen(space, {"x": 1.0, "y": 0.1}, n, value=float(n), intermediate_values={s: float(n) for s in values})
        for n in range(7)
    ]
    judge = sampling.Judge(kind, others, seeds)
    return [step for step, value in values.items() if judge.gives_up(step, value)]


def test_pruners_give_up_what_is_worse(space: Any) -> None:
    shares = {25: 0.5, 50: 0.5, 75: 0.5, 100: 0.5}
    assert judged("median", shares, space) == [25, 50, 75, 100]
    assert judged("median", dict.fromkeys(shares, 6.0), space) == []
    assert judged("none", shares, space) == []
    assert judged("hyperband", dict.fromkeys(shares, 7.0), space) == []
    over_seeds = {seed: -1.0 + 0.01 * seed for seed in range(6)}
    assert judged("wilcoxon", over_seeds, space, seeds=6)[0] in (3, 4)
    assert judged("wilcoxon", dict.fromkeys(range(6), 7.0), space, seeds=6) == []


def test_given_up_trials_stop_early_and_stand_at_what_they_came_to(tmp_path: Path) -> None:
    found = study(
        tmp_path, trials=12, in_flight=1, pruner="median", space="optimizer.lr: {low: 1e-6, high: 2.0, log: true}"
    )
    given_up = [one for one in trials_of(found) if one["state"] == "pruned"]
    assert given_up
    for one in given_up:
        assert one["value"] == one["course"][max(one["course"], key=int)]
        assert int(max(one["course"], key=int)) < 100
        assert one["seeds"] == []
    assert found["best"]["state"] == "complete"
    none = study(tmp_path, "none", trials=6, pruner="none", space="optimizer.lr: {low: 1e-6, high: 2.0, log: true}")
    assert none["counts"] == {"complete": 6, "pruned": 0, "failed": 0, "running": 0}
    assert trials_of(none)[0] == trials_of(found)[0]


def test_seeds_are_those_of_the_recipe_and_the_value_is_their_mean(tmp_path: Path) -> None:
    found = study(tmp_path, trials=1, seeds=3)
    (one,) = trials_of(found)
    assert found["seeds"] == [5, 6, 7]
    assert len(set(one["seeds"])) == 3
    assert one["value"] == pytest.approx(sum(one["seeds"]) / 3, abs=1e-12)
    assert list(map(int, one["course"])) == [*range(25, 301, 25)]


# ---------------------------------------------------------------------------------------------------- what goes wrong


def failing(error: Callable[[Job], MtmetaError], times: int) -> Runner:
    left = [times]

    def run(jobs: Sequence[Job], *, failed: Callable[..., None], **options: Any) -> None:
        if left[0]:
            left[0] -= 1
            failed(jobs[0], error(jobs[0]))
            raise Stopped("failure", "")
        in_process(jobs, failed=failed, **options)

    return run


def test_a_trial_that_diverges_has_failed_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run_planned", failing(lambda job: DivergedError(job.label, "became nan"), 1))
    found = study(tmp_path, trials=3)
    assert [one["state"] for one in trials_of(found)] == ["failed", "complete", "complete"]
    assert trials_of(found)[0]["reason"] == "trial-0000 seed 5: became nan"


def test_a_full_disk_ends_the_search_and_costs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run_planned", failing(lambda job: MachineError(job.label, "no space left"), 1))
    with pytest.raises(MachineError, match="no space left"):
        study(tmp_path, trials=2)
    assert study(tmp_path, trials=2)["counts"]["complete"] == 2


def test_a_run_that_is_killed_goes_on_and_one_that_always_is_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = lambda job: RunKilled(job.label, "was killed by SIGKILL")  # noqa: E731
    monkeypatch.setattr(trial, "run_planned", failing(kill, 2))
    assert study(tmp_path, "twice", trials=2)["counts"]["complete"] == 2
    monkeypatch.setattr(trial, "run_planned", failing(kill, 3))
    found = study(tmp_path, "thrice", trials=2)
    assert [one["state"] for one in trials_of(found)] == ["failed", "complete"]


def test_a_hopeless_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run_planned", failing(lambda job: DivergedError(job.label, "became nan"), 99))
    with pytest.raises(RecipeError, match="all of the first 5 trials failed, the last one: trial-0004 seed 5: became"):
        study(tmp_path, trials=20)
    assert len(list((tmp_path / "study").glob("trial-*"))) == 5


def test_settings_that_are_no_recipe_fail_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check before the first trial did not come across."""
    monkeypatch.setattr(Recipes, "check", lambda self: None)
    monkeypatch.setattr(trial, "run_planned", None)
    with pytest.raises(RecipeError, match=r"all of the first 5 trials failed, .*unknown key 'lrr' in 'optimizer'"):
        study(tmp_path, trials=9, space="optimizer.lrr: {low: 0.1, high: 1.0}")
    with pytest.raises(RecipeError, match="all of the first 2 trials failed"):
        study(tmp_path, "two", trials=2, space="optimizer.lrr: {low: 0.1, high: 1.0}")


def test_what_cannot_be_taken_up_again_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As trials of dead processes that stayed there would keep the search away from where they were."""
    monkeypatch.setattr(trial, "run_planned", failing(lambda job: MachineError(job.label, "no space left"), 2))
    for _ in range(2):  # the second time it is taken up, and fails in the same way
        with pytest.raises(MachineError, match="no space left"):
            study(tmp_path, trials=3)
    path = tmp_path / "study" / "trial-0000" / "seed-5"
    path.mkdir(exist_ok=True)
    (path / "recipe.yaml").write_text("name: another\n")
    (path / "recipe.lock.yaml").write_text("recipe: abcd\ndata: {}\n")
    (path / "summary.json").write_text("{}")
    found = study(tmp_path, trials=3)
    assert [one["state"] for one in trials_of(found)] == ["failed", "complete", "complete"]
    assert "was trained with recipe abcd.." in trials_of(found)[0]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruner": "wilcoxon"}, "--pruner: wilcoxon compares seeds, and of 1 it could never spare one; --seeds 5 or"),
        ({"pruner": "medain"}, "--pruner: must be one of median, hyperband, wilcoxon, none, found 'medain'"),
        ({"jobs": 5}, "--jobs: is 5, and at most 4 trials are under way at a time; --in-flight 5"),
        ({"budget": "20000"}, "--budget: takes examples=N, such as examples=20000, found '20000'"),
        ({"budget": "exmaples=200"}, "found 'exmaples=200'; did you mean 'examples'?"),
        ({"trials": 0}, "--trials: must be a number from 1 to 10000, found 0"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        study(tmp_path, **options)
    assert message in str(refused.value)
    assert not (tmp_path / "study").exists()


def test_another_search_in_the_same_folder_is_refused(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    before = {path: path.read_bytes() for path in (folder / "study").rglob("*") if path.is_file()}
    for options, what in (
        ({"seeds": 2}, r"seeds was \[5\], now \[5, 6\]"),
        ({"pruner": "none"}, 'pruner was "median", now "none"'),
        ({"space": SPACE.replace("2.0", "1.0")}, "space was"),
        ({"overrides": ["training.steps=5"]}, "recipe was"),
        ({"in_flight": 2}, "in_flight was 4, now 2"),
    ):
        with pytest.raises(UsageError, match=f"holds another study \\({what}"):
            study(folder, trials=14, **options)
    (folder / "space.yaml").write_text(SPACE)
    assert before == {path: path.read_bytes() for path in (folder / "study").rglob("*") if path.is_file()}


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MachineError, match=r"mtmeta tune: needs Optuna, .*pip install 'mtmeta\[tune\]'"):
        study(tmp_path)
    assert not (tmp_path / "study").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', and is no study of mtmeta tune"):
        study(tmp_path)


def test_missing_data_are_told_before_the_first_trial(tmp_path: Path) -> None:
    quick(tmp_path, "reptile")
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(MtmetaError, match=r"dev\.tsv"):
        study(tmp_path)
    assert not (tmp_path / "study").exists()


def test_data_that_change_in_the_middle_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, trials=1)
    dev = tmp_path / "dev.tsv"
    text = dev.read_text()
    dev.write_text(text.replace("other", "another"))
    with pytest.raises(DataError, match=r"trial-0001/seed-5: read another kind-dev than trial-0000 \(sha256 "):
        study(tmp_path, trials=2)
    dev.write_text(text)
    shutil.rmtree(tmp_path / "study" / "trial-0001" / "seed-5")
    assert study(tmp_path, trials=2)["counts"]["complete"] == 2
    chosen = "tasks.kind.train: {choices: [train.tsv, dev.tsv]}"
    assert study(tmp_path, "files", trials=4, space=chosen)["counts"]["failed"] == 0


def test_a_damaged_journal_is_one_line(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("quick.yaml", "space.yaml"):
        (tmp_path / name).write_text((whole[0] / name).read_text())
    shutil.copytree(whole[0] / "study", tmp_path / "study", symlinks=True)
    path = tmp_path / "study" / JOURNAL
    whole_text = path.read_bytes()
    for text, place in (
        (whole_text.replace(b'"op_code":4', b'"op_code":"four"', 1), f"{path}:2: damaged"),
        (whole_text.replace(b"\n", b"{\n", 1), f"{path}:1: damaged"),
        (whole_text.replace(b'"op_code":4', b'"op_code":44', 1), f"{path}: damaged"),
    ):
        path.write_bytes(text)
        with pytest.raises(CheckpointError) as refused:
            study(tmp_path, trials=14)
        assert str(refused.value).startswith(place)
    path.write_bytes(whole_text)
    (tmp_path / "study" / PLAN).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        study(tmp_path, trials=14)


def test_what_a_kill_tore_is_cut_before_more_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for text, kept in ((b"", b""), (b'{"a', b""), (b"one\n", b"one\n"), (b"one\ntwo", b"one\n"), (b"x" * 200_000, b"")):
        (tmp_path / JOURNAL).write_bytes(text)
        with journal.locked():
            assert (tmp_path / JOURNAL).read_bytes() == kept
    long = b"one\n" + b"x" * 200_000
    (tmp_path / JOURNAL).write_bytes(long)
    with journal.locked():
        assert (tmp_path / JOURNAL).read_bytes() == b"one\n"


def test_a_trial_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    """Its folder is locked: this process makes the others, and waits for it."""
    quick(tmp_path, "reptile")
    held = threading.Event()
    released = threading.Event()

    def hold() -> None:
        with lock_folder(tmp_path / "study" / "trial-0000", lambda text: None):
            held.set()
            released.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    said: list[str] = []

    def look(text: str) -> None:
        said.append(text)
        if sum(line.startswith("trial ") for line in said) == 2:
            released.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtmeta.core.studies.tuning.tune.check_place", lambda folder: None)
        found = study(tmp_path, trials=3, say=look)
    holder.join()
    made = [int(line.split()[1].rstrip(":")) for line in said if line.startswith("trial ")]
    assert made == [1, 2, 0]
    assert found["counts"]["complete"] == 3


# ---------------------------------------------------------------------------------------------------------- progress


def event(kind: str, **fields: Any) -> str:
    step = {"group": "a", "steps": 4, "losses": {}, "lr": 0.1, "norm": 1.0, "examples": 1, "seconds": 1.0}
    evaluated = {"group": "a", "split": "dev", "tasks": {}, "best": True}
    started = {"name": "n", "algorithm": "a", "tasks": ["a"], "groups": [["a"]], "device": "cpu", "parameters": 1}
    return json.dumps({"type": kind, **{"step": step, "evaluated": evaluated, "run_started": started}[kind], **fields})


def test_evaluations_are_given_once_however_often_events_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    progress = Progress(tmp_path)
    assert progress.new() == []
    lines = [event("run_started")]
    for step in range(1, 5):
        lines += [event("step", step=step), event("evaluated", step=step, selected=step / 10)]
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])
    assert progress.new() == [(25, 0.1)]
    assert progress.new() == []
    path.write_text("\n".join(lines[:5]) + "\n")
    assert progress.new() == [(50, 0.2)]
    path.write_text("\n".join(lines[:2]) + "\n")  # rewound, and made again with other times
    assert progress.new() == []
    again = [*lines[:2], lines[2].replace("0.1", "0.1 "), *lines[3:7]]
    path.write_text("\n".join(again) + "\n")
    assert progress.new() == [(75, 0.3)]
    path.write_text("\n".join([*again, event("evaluated", step=4, selected=None)]) + "\n")
    assert progress.new() == [(100, None)]
    path.write_text(event("run_started", groups=[["a"], ["b"]]) + "\n" + "\n".join(lines[1:3]) + "\n")
    assert Progress(tmp_path).new() == []


# ------------------------------------------------------------------------------------------------------------ reports


def test_the_table_and_the_page(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, found = whole
    show_search(found)
    printed = capsys.readouterr().out
    assert f"{found['best']['value']:.4f}" in printed
    assert "Importance is told from 20 complete trials" in printed
    made = call("report", str(folder / "study"), "--out", "page.html", cwd=tmp_path, capsys=capsys)
    assert made.code == 0, made.err
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 + len(found["space"])
    for one in trials_of(found):
        assert one["value"] is None or f"{one['value']:.4f}" in page
    with pytest.raises(UsageError, match="has a page of its own; give it alone"):
        report([folder / "study", folder / "study"], out=tmp_path / "no.html")


def test_the_command(whole: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, found = whole
    given = (
        "tune",
        "quick.yaml",
        "--space",
        "space.yaml",
        "--trials",
        "14",
        "--seeds",
        "1",
        "--in-flight",
        "4",
        "--out",
        "study",
    )
    done = call(*given, "--json", cwd=folder, capsys=capsys)
    assert done.code == 0, done.err
    assert trials_of(json.loads(done.out)) == trials_of(found)
    refused = call("tune", "quick.yaml", "--space", "none.yaml", cwd=folder, capsys=capsys)
    assert refused.code == 2
    assert refused.errors == ["error: none.yaml: no such file; did you mean 'space.yaml'?"]
