"""The commands as functions with typed results: evaluate, compare, tune, adapt, export, report, validate, plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mtmeta.core.authoring.check import check_recipe
from mtmeta.core.errors import RecipeError, UsageError
from mtmeta.core.export.export import export as write_export
from mtmeta.core.export.obstacles import obstacles
from mtmeta.core.python.results import (
    Adaptation,
    Checked,
    Comparison,
    Exported,
    LearningCurve,
    Plan,
    Run,
    Scores,
    Search,
)
from mtmeta.core.recipe.from_python import PLACE, RecipeSource, document_of, is_recipe_data
from mtmeta.core.recipe.reader import NAME, load_recipe
from mtmeta.core.recipe.resolved import dump
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.html.report import report as write_report
from mtmeta.core.run.evaluate import score_run
from mtmeta.core.run.plan import plan as plan_request
from mtmeta.core.run.request import RunRequest
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.download import Watcher
from mtmeta.core.studies.adapt import adapt as adapt_runs
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.studies.compare import RECIPES, compare_recipes
from mtmeta.core.studies.curve import FRACTIONS, learning_curve
from mtmeta.core.studies.launching.placement import place
from mtmeta.core.studies.protocol import Protocol, chosen_tasks
from mtmeta.core.studies.tuning.tune import IN_FLIGHT, SEEDS, TRIALS, check_place, study_folder, tune_recipe
from mtmeta.core.wording import quote

RunSource = str | Path | Run
"""A run by its directory, or as `run` and `train` return it."""
Say = Callable[[str], None]


def _quietly(text: str) -> None:
    """Say nothing."""


def _folder(run: RunSource) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def read_recipe(
    recipe: RecipeSource,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Say = _quietly,
) -> Recipe:
    """Read and check a recipe: a path, the name of one that comes with mtmeta, a mapping, or a Recipe.

    Its sections and parts are objects; `mtmeta.run` takes it. Raises RecipeError, PluginError, or Problems where there
    are several.
    """
    registry = build_registry(block=block, warn=warn, plugins=plugins)
    return load_recipe(recipe, registry, overrides=overrides, data_root=data_root)


def evaluate(
    run: RunSource,
    *,
    split: str | None = None,
    task: str | None = None,
    files: Mapping[str, str] | None = None,
    data_root: str | None = None,
    device: str = "auto",
    allow_changed_data: bool = False,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    verbose: bool = False,
    abstain: float | None = None,
    warn: Say = _quietly,
    watcher: Watcher | None = None,
) -> Scores:
    """Score the best weights of a run, and return the table that `mtmeta eval --json` prints.

    `split` is by default the one that the recipe reports on; `task` names one task, all by default; `files` are other
    files by task, in the place of a split; `verbose` adds confusion or error detail. Of a task with classes no answer
    is taken whose probability is below `abstain`: that is right for a label that is no class of the recipe, and wrong
    for all others. `plugins` are the classes in no package that it was trained with. Raises MtmetaError.
    """
    request = RunRequest(
        data_root=data_root,
        device=device,
        allow_changed_data=allow_changed_data,
        block=block,
        plugins=plugins,
        warn=warn,
        watcher=watcher,
    )
    return Scores(
        score_run(_folder(run), request, split=split, task=task, files=files, verbose=verbose, abstain=abstain).plain()
    )


def compare(
    recipes: Sequence[RecipeSource],
    *,
    seeds: int | None = None,
    add_seeds: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path = "runs/compare",
    data_root: str | None = None,
    device: str = "auto",
    baseline: str | Sequence[str] | None = None,
    margin: float | None = None,
    until: Literal["interval"] | None = None,
    tasks: Sequence[str] = (),
    jobs: int | None = None,
    on: str | None = None,
    block: Sequence[str] = (),
    warn: Say = _quietly,
    say: Say = _quietly,
    watcher: Watcher | None = None,
) -> Comparison:
    """Run every recipe with every seed, and return the comparison that `mtmeta compare --json` prints.

    A recipe that is no file is written to `out`/recipes, under its name. The seeds of a recipe are its own and the
    `seeds` - 1 numbers after it, by default 3 in all, or as many as the comparison had before; `add_seeds` adds to
    them. Runs lie in `out`, named after recipe, seed and digest: those that are finished are used as they are, those
    that were cut go on. `baseline` names the recipes that differences are to; by default the one that trains each task
    alone. With a `margin` a row is not inferior to a baseline if its interval lies above -margin. `until="interval"`
    gives a row no further seeds once its interval excludes 0 at one of a few looks. `tasks` are those that count, by
    default all, which all recipes must have then; what recipes train beside them are helpers. Runs are processes of
    this machine, `jobs` at a time, or jobs of a launcher: `on="slurm"`, with its options among the overrides, as
    `launcher.gpus=1`. Recipes, files and device are checked before the first run begins. Raises MtmetaError,
    RecipeError where the recipes do not measure the same, DataError where they read other data, Incomplete, with the
    comparison of the others, where runs of some recipes failed.
    """
    if isinstance(recipes, str | Path | Mapping | Recipe):
        raise UsageError("recipes", "is one recipe; give a list of them")
    paths = [_file_of(recipe, Path(out)) for recipe in recipes]
    request = RunRequest(
        overrides=overrides, out=out, data_root=data_root, device=device, block=block, warn=warn, watcher=watcher
    )
    if until not in (None, "interval"):
        raise UsageError("--until", f"must be interval, found {quote(str(until))}")
    baselines = (baseline,) if isinstance(baseline, str) else tuple(baseline or ())
    protocol = Protocol(baselines, margin, until == "interval", chosen_tasks(tasks, "tasks"))
    placement, request = place(request, on, jobs=jobs)
    return Comparison(compare_recipes(paths, request, protocol, placement, seeds=seeds, add_seeds=add_seeds, say=say))


def curve(
    recipe: RecipeSource,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path = "runs/curve",
    data_root: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    on: str | None = None,
    block: Sequence[str] = (),
    warn: Say = _quietly,
    say: Say = _quietly,
    watcher: Watcher | None = None,
) -> LearningCurve:
    """Train a recipe on shares of its training data, and return the curve that `mtmeta curve --json` prints.

    Each of `fractions` is a recipe of its own in `out`/recipes, which differs in `data.train_fraction`; the runs of all
    of them, with `seeds` seeds each, are those of `compare`, as are `jobs`, `on` and what is raised. A share is drawn
    anew for each seed. A recipe that counts `steps` takes as many on every share, one that counts `epochs` fewer on
    less data. Raises MtmetaError, UsageError for fractions that are none.
    """
    request = RunRequest(
        overrides=overrides, out=out, data_root=data_root, device=device, block=block, warn=warn, watcher=watcher
    )
    placement, request = place(request, on, jobs=jobs)
    return LearningCurve(learning_curve(recipe, request, fractions, placement, seeds=seeds, say=say))


def _file_of(recipe: RecipeSource, folder: Path) -> Path:
    """Return the path of a recipe; an object is written to a study's folder first. Raises RecipeError."""
    if not isinstance(recipe, Mapping | Recipe):
        return Path(recipe)
    data = document_of(recipe).data
    name = data.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RecipeError(PLACE, f"in a study needs a 'name' of its own, found {quote(name)}; add it")
    path = folder / RECIPES / f"{name}.yaml"
    write_file(path, dump(data))
    return path


def tune(
    recipe: RecipeSource,
    space: str | Path | Mapping[str, Any],
    *,
    trials: int = TRIALS,
    seeds: int = SEEDS,
    jobs: int | None = None,
    on: str | None = None,
    in_flight: int = IN_FLIGHT,
    pruner: Literal["median", "hyperband", "wilcoxon", "none"] = "median",
    budget: str | None = None,
    keep_weights: bool = False,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    block: Sequence[str] = (),
    warn: Say = _quietly,
    say: Say = _quietly,
    watcher: Watcher | None = None,
) -> Search:
    """Search the settings in a space for those with the highest value on dev, as `mtmeta tune` does.

    `space` is a file, or a mapping of `--set` keys to ranges and choices, as {"optimizer.lr": {"low": 0.1, "high": 1}}.
    A trial is the recipe with some settings, trained with `seeds` seeds, its own and those after it; its value is the
    mean over them of what `evaluation.select` says of the best weights, on dev. `trials` are made in all,
    `jobs` at a time by this process; others may share the study, in `out`, by default runs/NAME-tune, and started again
    it goes on. `on` names a launcher whose jobs the runs are, by default processes of this one. Each trial is suggested
    by TPE from the outcomes of those before it, less the last `in_flight` - 1, which may still be under way: so it is
    the same search however many processes there are, and whenever they are killed. `pruner` is median or hyperband,
    which give up trials at evaluations, wilcoxon, which does so between seeds, or none. `budget` is short for an
    override, as "examples=20000". A recipe or space that is an object is written to `out`/recipes. Raises MtmetaError,
    MachineError without Optuna; nothing is trained unless recipe, space and files are in order.
    """
    if is_recipe_data(recipe) or isinstance(space, Mapping):
        named = read_recipe(recipe, overrides=overrides, data_root=data_root, block=block)
        out = Path(out) if out is not None else study_folder(named)
        check_place(out)
        recipe = _file_of(recipe, out)
        if isinstance(space, Mapping):
            write_file(out / RECIPES / "space.yaml", dump(document_of(space).data))
            space = out / RECIPES / "space.yaml"
    request = RunRequest(
        recipe,
        overrides=overrides,
        out=out,
        data_root=data_root,
        device=device,
        block=block,
        warn=warn,
        watcher=watcher,
    )
    found = tune_recipe(
        request,
        space,
        trials=trials,
        seeds=seeds,
        jobs=jobs,
        on=on,
        in_flight=in_flight,
        pruner=pruner,
        budget=budget,
        keep_weights=keep_weights,
        say=say,
    )
    return Search(found)


def adapt(
    runs: RunSource | Sequence[RunSource],
    recipe: RecipeSource,
    *,
    shots: Sequence[int] = (4, 16, 64),
    seeds: int = 5,
    tasks: Sequence[str] = (),
    head: Literal["reset", "prototype"] = "reset",
    baseline: str | None = None,
    keep: str | Path | None = None,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Say = _quietly,
    say: Say = _quietly,
) -> Adaptation:
    """Adapt runs, and the encoder they began from, to the tasks of a recipe with few examples of each class.

    `shots` are numbers of examples of each class, `seeds` the draws of each; `tasks` those of the recipe, all by
    default. In the folder `keep` the model of the first draw of most shots becomes a run RUN-TASK-K, of every run and
    task. On a CPU `jobs` adaptations are under way at a time, by default as many as there are cores. Raises
    MtmetaError.
    """
    if head not in ("reset", "prototype"):
        raise UsageError("head", f"must be reset or prototype, found {quote(head)}")
    several = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    request = RunRequest(
        recipe=recipe, overrides=overrides, data_root=data_root, device=device, block=block, plugins=plugins, warn=warn
    )
    plan = Shots(list(shots), seeds, head, baseline)
    folders = [_folder(run) for run in several]
    return Adaptation(adapt_runs(folders, request, plan, tasks=tasks, keep=keep, jobs=jobs, say=say))


def export(
    run: RunSource,
    format: Literal[
        "transformers", "text-classification", "token-classification", "onnx", "sentence-transformers", "peft"
    ],
    *,
    tasks: Sequence[str] = (),
    out: str | Path | None = None,
    fresh: bool = False,
    int8: Literal["row", "batch"] | None = None,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Say = _quietly,
    say: Say = _quietly,
) -> Exported:
    """Write a run's best weights for other libraries, compared with what `predict` says before they are there.

    `tasks` are all by default; `out` is RUN/export/FORMAT by default, and `fresh` replaces an export of another run
    there. `int8` adds a graph in int8 to text-classification, with a scale for each row of activations or for each
    batch; what it costs on dev is in the result and in the card. Raises MtmetaError, and then leaves nothing behind.
    """
    options: Any = {"tasks": tasks, "out": out, "fresh": fresh, "int8": int8, "block": block, "plugins": plugins}
    return Exported(write_export(_folder(run), format, **options, warn=warn, say=say))


def report(
    runs: RunSource | Sequence[RunSource],
    *,
    out: str | Path | None = None,
    baseline: str | Sequence[str] | None = None,
    margin: float | None = None,
    tasks: Sequence[str] = (),
    texts: bool = True,
    block: Sequence[str] = (),
    warn: Say = _quietly,
) -> Path:
    """Write one self-contained HTML page about runs to `out`, by default report.html here; return its path.

    Runs of one recipe with several seeds are one row of the comparison; `baseline`, `margin` and `tasks` are as in
    `compare`. Without `texts` the page holds no text of the data, only ids. Raises MtmetaError, and MachineError
    without matplotlib.
    """
    several = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    folders = [_folder(run) for run in several]
    options: Any = {"baseline": baseline, "margin": margin, "tasks": tasks, "texts": texts}
    options |= {"block": block, "warn": warn}
    return write_report(folders, out=out, **options)


def validate(
    recipe: RecipeSource,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    data: bool = False,
    strict: bool = False,
    weights: bool = False,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Say = _quietly,
    watcher: Watcher | None = None,
) -> Checked:
    """Check a recipe without training, and return what is wrong with it, all of it at once.

    With `data` its files are read: rows, labels, lengths, bad rows, duplicates, overlap; `strict` makes duplicates and
    overlap problems, too. With `weights` its encoder is loaded. Raises UsageError for `strict` without `data`,
    PluginError for `plugins` that are none.
    """
    if strict and not data:
        raise UsageError("strict", "is for data=True; give both")
    registry = build_registry(block=block, warn=warn, plugins=plugins)
    options: Any = {"overrides": overrides, "data_root": data_root, "data": data, "strict": strict}
    check = check_recipe(recipe, registry, **options, weights=weights, warn=warn, watcher=watcher)
    return Checked(check.document())


def plan(
    recipe: RecipeSource,
    *,
    probe: int = 20,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Say = _quietly,
    watcher: Watcher | None = None,
) -> Plan:
    """Return what `run` would do with a recipe, and how long it would take; trains nothing that stays.

    `probe` steps are timed, in memory; 0 for none. Raises what `run` would raise before its first step.
    """
    request = RunRequest(
        recipe=recipe,
        overrides=overrides,
        out=out,
        data_root=data_root,
        device=device,
        block=block,
        plugins=plugins,
        warn=warn,
        watcher=watcher,
    )
    return Plan(plan_request(request, probe, obstacles))
