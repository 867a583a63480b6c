"""`mtmeta run`: recipe -> registry -> parts -> training, group by group -> best weights -> summary."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.events import Event, RunFinished, RunResumed, RunStarted, Warned
from mtmeta.core.data.carving import carvings
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed, check_episode
from mtmeta.core.data.subsets import overlap, subset
from mtmeta.core.environment import check_launcher
from mtmeta.core.machine import fitting_threads, peak_memory, pick_device
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.guard import fault
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.directory import RunDir, make_lock
from mtmeta.core.run.event_stream import Recorded, open_reporters, require_reporters, rewind_events
from mtmeta.core.run.fetch import bring, local_backbone
from mtmeta.core.run.session import Session, dump_json
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.artifacts import pins_of, remedy
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.lock import lock_folder
from mtmeta.core.storage.sources import Sources
from mtmeta.core.training.budget import share_of, steps_on_budget
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.selection import Selection
from mtmeta.core.training.trainer import Trainer

__all__ = ["run"]


def run(
    recipe_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    allow_changed_data: bool = False,
    allow_inexact: bool = False,
    block: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Train a recipe, evaluate its best weights and return the summary that summary.json holds.

    In a directory that holds an unfinished run of the same recipe, goes on from its newest checkpoint. Raises
    MtmetaError; nothing in the run directory changes unless recipe, data and weights are all in order.
    What the recipe names elsewhere and is not in the cache is fetched, of which `watcher` hears.
    `stop` is how the command line has signals end the run between two steps.
    """
    check_launcher()
    registry = build_registry(block=block, warn=warn)
    recipe = load_recipe(recipe_path, registry, overrides=overrides, data_root=data_root)
    folder = RunDir(Path(out) if out is not None else Path("runs") / recipe.name)
    continued = folder.check_usable(recipe, fresh=fresh)
    if continued and (summary := folder.finished()):
        warn(f"{folder.path} is finished; --fresh trains it again")
        return {**summary, "run": str(folder.path)}  # it may have been moved since
    require_reporters(recipe.reporters)
    # a run that goes on reads the commit it began with, wherever the branch is now
    pins = pins_of(folder.lock()) if continued else {}
    sources = Sources(pins, watcher, remedy=remedy(recipe_path))
    training = _Training(recipe, registry, folder, pick_device(device), warn, sources)
    training.stop = stop or StopRequest()
    with ExitStack() as stack:
        # a directory that is there is held before the work begins, another one is made only when all is in order
        if held := folder.path.exists():
            stack.enter_context(lock_folder(folder.path, warn))
        training.load()
        stack.enter_context(fitting_threads(training.backbone.encoder))
        lock = training.lock()
        if not held:
            stack.enter_context(lock_folder(folder.path, warn))
        continued = folder.check_usable(recipe, fresh=fresh)  # again: until now another process may have held it
        if continued and (summary := folder.finished()):
            warn(f"{folder.path} is finished; --fresh trains it again")
            return {**summary, "run": str(folder.path)}
        if continued:
            folder.check_same(lock, training.files, allow_changed_data=allow_changed_data, allow_inexact=allow_inexact)
            folder.clear()
        else:
            folder.begin(recipe, lock, training.backbone.files)
        return training.run(continued)


class _Training(Session):
    """A run from its data to its summary."""

    stop: StopRequest

    def load(self) -> None:
        """Load weights and data; nothing is written yet but the cache."""
        recipe, evaluated = self.recipe, self.recipe.evaluation
        reported = list(dict.fromkeys((evaluated.select_on, evaluated.report_on)))
        bring(recipe, ("train", *reported), self.sources)
        local = local_backbone(recipe, self.sources)
        backbone: object = local.load(recipe.seed)
        if not isinstance(backbone, LoadedBackbone):
            message = f"backbone '{recipe.backbone.name}' loaded {type(backbone).__name__}, expected a LoadedBackbone"
            raise fault(recipe.backbone, message)
        self.backbone = backbone
        found: dict[tuple[str, str], Dataset] = {}
        for name in recipe.tasks:
            for split in ("train", *reported):
                found[name, split] = self.read_split(name, split)
            for split in reported:
                if common := overlap(found[name, "train"], found[name, split]):
                    total = len(found[name, split])
                    self.notes.append(Warned(f"{name}: {common} of {total} {split} examples also in train"))
        for (name, split), data in found.items():
            if split == "train":
                data = found[name, split] = subset(data, recipe.data.train_fraction, recipe.seed, name)
                needed = recipe.algorithm.episode_batches(recipe.tasks[name])
                check_episode(name, needed, recipe.tasks[name].batch_size, len(data))
            self.note(data)
        self.datasets = found
        train = {name: found[name, "train"] for name in recipe.tasks}
        self.budgeted = steps_on_budget(recipe, self.groups, backbone.encoder, train, self.numbers)
        self.files = {f"{name}-{split}": (data.file, data.sha256) for (name, split), data in found.items()}

    def lock(self) -> dict[str, Any]:
        """What pins this run down, to be written or compared."""
        hashes = {key: sha256 for key, (_, sha256) in self.files.items()}
        made = make_lock(self.recipe, self.registry, hashes, self.backbone, self.device, self.precision)
        rows = {name: len(data) for (name, split), data in self.datasets.items() if split == "dev"}
        made |= carvings(self.recipe.tasks, rows)
        return made | ({"sources": found} if (found := self.sources.lock()) else {})

    def run(self, continued: bool) -> dict[str, Any]:
        """Train every group, then score the best weights."""
        started = time.perf_counter()
        finished: list[dict[str, Any]] = []
        with ExitStack() as stack:
            found = self._find() if continued else {}
            steps = {name: int(path.name.removeprefix("step-")) for name, path in found.items() if path}
            recorded = rewind_events(self.folder.path / "events.jsonl", steps) if continued else Recorded()
            emit = self._open_reporters(stack)
            for group in self.groups:
                trainer = self._trainer(group, emit)
                path = found.get(trainer.group)
                if path is not None:
                    trainer.restore(*trainer.checkpoints.load(path, verified=True))
                # without a checkpoint the run starts over, and what it had found until then is no longer its own
                trainer.checkpoints.go_back(trainer.step, trainer.selection.links, trainer.is_scheduled)
                if not finished:
                    self._announce(trainer, steps, recorded, emit)
                told = (trainer.group, trainer.step) in recorded.checkpoints
                if path is not None and trainer.is_scheduled(trainer.step) and not told:
                    trainer.announce_checkpoint(path)  # a kill came between the two
                trainer.run()
                finished.append(self._finish(trainer))
            summary = self._summarise(finished, time.perf_counter() - started)
            emit(RunFinished(summary))
            write_file(self.folder.summary, dump_json(summary))  # with this the run is over
        return summary

    def _find(self) -> dict[str, Path | None]:
        """The checkpoint each group goes on from. Warns of damaged ones."""
        found = {}
        for group in self.groups:
            path, damaged = self.checkpoints(group).newest()
            for line in damaged:
                self.warn(f"{line}; {'using ' + path.name if path else 'starting over'}")
            found["+".join(group)] = path
        return found

    def _open_reporters(self, stack: ExitStack) -> Callable[[Event], None]:
        """What hands an event to every reporter."""
        return open_reporters(stack, self.recipe.reporters, self.folder.path, newest=self.newest, warn=self.warn)

    def _announce(
        self, trainer: Trainer, steps: dict[str, int], recorded: Recorded, emit: Callable[[Event], None]
    ) -> None:
        recipe = self.recipe
        parameters = sum(p.numel() for p in trainer.learner.parameters.values())
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        names = list(recipe.tasks)
        if steps:
            last = list(steps)[-1]
            message = (recipe.name, recipe.algorithm.name, names, device, parameters, last, steps[last], time.time())
            emit(RunResumed(*message, self.groups, steps))  # first, so that no reporter takes this for the beginning
        if not recorded.started:
            emit(RunStarted(recipe.name, recipe.algorithm.name, names, self.groups, device, parameters, time.time()))
            for note in self.notes:
                emit(note)

    def _trainer(self, group: list[str], emit: Callable[[Event], None]) -> Trainer:
        recipe = self.recipe
        name, last = "+".join(group), group == self.groups[-1]
        tasks = {task: recipe.tasks[task] for task in group}
        # every group starts from the same pretrained encoder; the last one may have the original
        encoder = self.backbone.encoder if last else copy.deepcopy(self.backbone.encoder)
        model = MultiTaskModel(encoder, tasks, recipe.seed, self.numbers(group)).to(self.device)
        train = {task: self.datasets[task, "train"] for task in group}
        chunks = recipe.training.grad_accumulation
        pin = self.device.type == "cuda"
        feed = Feed(tasks, train, recipe.sampler, seed=recipe.seed, grad_accumulation=chunks, pin=pin)
        every, epochs = recipe.evaluation.every, recipe.training.epochs
        per_epoch = 0
        if (epochs and name not in self.budgeted) or every == "epoch":
            per_epoch = self._steps_per_epoch(feed)
        feed.steps = steps = self.budgeted.get(name) or recipe.training.steps or (epochs or 0) * per_epoch
        checkpoints = self.checkpoints(group)
        learner = Learner(
            model,
            seed=recipe.seed,
            steps=steps,
            group=name,
            precision=self.precision,
            # on a GPU each check is a synchronisation, so it waits for the end of the step unless a skip needs it
            check_each_loss=self.device.type == "cpu" or recipe.training.on_nonfinite == "skip",
        )
        return Trainer(
            recipe=recipe,
            group=name,
            several=len(self.groups) > 1,
            learner=learner,
            feed=feed,
            steps=steps,
            evaluate_every=every if isinstance(every, int) else per_epoch if every == "epoch" else steps,
            selection=Selection(
                options=recipe.evaluation,
                group=name,
                datasets={task: self.datasets[task, recipe.evaluation.select_on] for task in group},
                metrics=self.metrics,
                checkpoints=checkpoints,
                seed=recipe.seed,
                precision=self.precision,
            ),
            checkpoints=checkpoints,
            emit=emit,
            precision=self.precision,
            stop=self.stop,
            budget=share_of(recipe, group) if name in self.budgeted else None,
        )

    def _steps_per_epoch(self, feed: Feed) -> int:
        algorithm = self.recipe.algorithm
        steps: object = algorithm.steps_per_epoch(feed.batches_per_epoch)
        if not isinstance(steps, int) or steps < 1:
            message = f"algorithm '{algorithm.name}' counts {steps} steps in an epoch, expected a whole number from 1"
            raise fault(algorithm, message)
        return steps

    def _finish(self, trainer: Trainer) -> dict[str, Any]:
        """Score a group's best weights and keep what the summary needs, so that its model and optimizers can go."""
        model, split = trainer.learner.model, self.recipe.evaluation.report_on
        model.load_state_dict(trainer.checkpoints.best())
        return {
            "scores": {task: self.score(model, self.datasets[task, split])[0] for task in trainer.learner.tasks},
            "usage": trainer.feed.usage(),
            "steps": trainer.steps,
            "seconds": trainer.seconds,
            "examples": trainer.learner.examples,
            "skipped": trainer.skipped,
        }

    def _summarise(self, groups: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        recipe = self.recipe
        scores = {task: made for group in groups for task, made in group["scores"].items()}
        return {
            **self.table(recipe.evaluation.report_on, {task: scores[task] for task in recipe.tasks}),
            "name": recipe.name,
            "algorithm": recipe.algorithm.name,
            "seed": recipe.seed,
            "selected_on": recipe.evaluation.select_on,
            "steps": sum(group["steps"] for group in groups),
            "seconds": round(sum(group["seconds"] for group in groups), 2),
            "total_seconds": round(seconds, 2),
            "examples": sum(group["examples"] for group in groups),
            "skipped_steps": sum(group["skipped"] for group in groups),
            "sampling": {task: used for group in groups for task, used in group["usage"].items()},
            "peak_memory_bytes": peak_memory(),
        }
