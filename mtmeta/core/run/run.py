"""`mtmeta run`: recipe -> registry -> parts -> training, group by group -> best weights -> summary."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.events import Event, RunFinished, RunResumed, RunStarted, Warned
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed, check_episode
from mtmeta.core.data.subsets import overlap, subset, without_fold
from mtmeta.core.data.teachers import TeacherRows, hashes_of, teachers_of, teaching_cost
from mtmeta.core.machine import fitting_threads, own_settings
from mtmeta.core.methods.adapters import find_places
from mtmeta.core.registry.guard import fault
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.event_stream import Recorded, open_reporters, rewind_events
from mtmeta.core.run.fetch import bring, local_backbone, splits_read
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import OpenRecipe, Session
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.lock import lock_folder
from mtmeta.core.training.budget import share_of, steps_on_budget
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.evaluation import Score
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.selection import Selection
from mtmeta.core.training.trainer import Trainer

Emit = Callable[[Event], None]


@own_settings()
def train(request: RunRequest) -> RunSummary:
    """Carry out a request: train its recipe, score the best weights and return the summary; see `mtmeta.run`."""
    opened = OpenRecipe(request)
    recipe, folder = opened.recipe, opened.folder
    if opened.continued and (summary := _finished(folder, request)):
        return summary
    for reporter in recipe.reporters:
        reporter.require()  # before anything that takes time
    recipe.algorithm.require()
    training = Training(opened.session(), request.stop, request.on_event)
    with ExitStack() as stack:
        # a directory that is there is held before the work begins, another one is made only when all is in order
        if held := folder.path.exists():
            stack.enter_context(lock_folder(folder.path, request.warn))
        training.load()
        backbone = training.session.backbone
        stack.enter_context(fitting_threads(backbone.encoder))
        lock = training.lock()
        if not held:
            stack.enter_context(lock_folder(folder.path, request.warn))
        continued = folder.check_usable(recipe, fresh=request.fresh)  # again: another process may have held it till now
        if continued and (summary := _finished(folder, request)):
            return summary
        if continued:
            folder.check_own(appending=True)
            allowed = {"allow_changed_data": request.allow_changed_data, "allow_inexact": request.allow_inexact}
            folder.check_tokenizer(backbone)
            folder.check_same(lock, training.files, **allowed)
            folder.clear()
            training.session.warn_of_slowness()  # a run's notes are shown where it begins
        else:
            folder.begin(recipe, lock, backbone.files)
        return training.run(continued)


def _finished(folder: RunDir, request: RunRequest) -> RunSummary | None:
    if summary := folder.finished():
        request.warn(f"{folder.path} is finished; --fresh trains it again")
        return summary.moved(folder.path)  # since it ended, perhaps
    return None


class Training:
    """A session that is trained, from its data to its summary."""

    def __init__(self, session: Session, stop: StopRequest | None = None, listen: Emit | None = None) -> None:
        self.session, self.listen = session, listen
        self.stop = stop or StopRequest()
        self.datasets: dict[tuple[str, str], Dataset] = {}
        """Datasets by task and split."""
        self.files: dict[str, tuple[str, str]] = {}
        """Path and SHA-256 of the files read, by TASK-SPLIT."""
        self.budgeted: dict[str, int] = {}
        """Steps that the recipe's budget pays for, by group; empty without one."""
        self.teachers: dict[str, TeacherRows] = {}
        """What teachers say of the training sets, by task; empty without any."""
        self.scores: dict[str, Score] = {}
        self.sampling: dict[str, dict[str, float]] = {}
        self.totals: dict[str, float] = {}
        """Steps, seconds and so on of the groups that are finished."""

    def load(self) -> None:
        """Load weights and data; nothing is written yet but the cache."""
        session, recipe = self.session, self.session.recipe
        bring(recipe, splits_read(recipe), session.sources)
        backbone: object = local_backbone(recipe, session.sources).load(recipe.seed)
        if not isinstance(backbone, LoadedBackbone):
            message = f"backbone '{recipe.backbone.name}' loaded {type(backbone).__name__}, expected a LoadedBackbone"
            raise fault(recipe.backbone, message)
        session.backbone = backbone
        if recipe.adapters is not None:
            find_places(backbone.encoder, recipe.adapters)  # before anything is written
        session.note_backbone()
        session.check_memory()
        self._read_data()
        train = {name: self.datasets[name, "train"] for name in recipe.tasks}
        self.budgeted = steps_on_budget(recipe, session.groups, backbone.encoder, train, session.numbers)
        self.files = {f"{name}-{split}": (data.file, data.sha256) for (name, split), data in self.datasets.items()}

    def _read_data(self) -> None:
        """Read train and the splits reported on, and note their rows and overlaps for the user."""
        session, recipe, datasets = self.session, self.session.recipe, self.datasets
        for name in recipe.tasks:
            train = datasets[name, "train"] = session.read_split(name, "train")
            for split in splits_read(recipe)[1:]:
                scored = datasets[name, split] = session.read_split(name, split)
                if common := overlap(train, scored):
                    text = f"{name}: {common} of {len(scored)} {split} examples also in train"
                    session.notes.append(Warned(text=text))
        for (name, split), dataset in datasets.items():
            if split == "train":
                dataset = subset(dataset, recipe.data.train_fraction, recipe.seed, name)
                dataset = without_fold(dataset, recipe.data.leave_out, recipe.seed, name)
                datasets[name, split] = dataset = self._taught(dataset)
                needed = recipe.algorithm.episode_batches(recipe.tasks[name])
                check_episode(name, needed, recipe.tasks[name].batch_size, len(dataset))
            session.note(dataset)

    def _taught(self, train: Dataset) -> Dataset:
        """Return a training set with what its task's teachers say of it, if there are any."""
        recipe, name = self.session.recipe, train.task
        options = recipe.teachers.of.get(name) if recipe.teachers is not None else None
        if options is None:
            return train
        self.teachers[name] = teachers_of(train, recipe.tasks[name].objective, options, recipe.seed)
        return replace(train, teacher=self.teachers[name])

    def lock(self) -> dict[str, Any]:
        """Return the lock that pins this run down, to be written or compared."""
        hashes = {key: sha256 for key, (_, sha256) in self.files.items()}
        rows = {name: len(data) for (name, split), data in self.datasets.items() if split == "dev"}
        lock = self.session.lock(self.session.recipe, hashes, rows)
        return lock | {"teachers": hashes_of(self.teachers)} if self.teachers else lock

    def run(self, continued: bool) -> RunSummary:
        """Train every group, then score the best weights."""
        session, started = self.session, time.perf_counter()
        with ExitStack() as stack:
            newest = self.newest() if continued else {}
            steps = steps_of(newest)
            recorded = rewind_events(session.folder.path / "events.jsonl", steps) if continued else Recorded()
            emit = self.open_reporters(stack)
            if session.is_frozen:
                self._keep_encoder()
            for group in session.groups:
                trainer = self.trainer(group, emit)
                path = newest.get(trainer.group)
                if path is not None:
                    trainer.restore(*trainer.checkpoints.load(path, verified=True))
                # without a checkpoint the run starts over, and the best weights until then are no longer its own
                trainer.checkpoints.go_back(trainer.step, trainer.selection.links, trainer.is_scheduled)
                if group is session.groups[0]:
                    self._announce(trainer, steps, recorded, emit)
                is_recorded = (trainer.group, trainer.step) in recorded.checkpoints
                if path is not None and trainer.is_scheduled(trainer.step) and not is_recorded:
                    trainer.announce_checkpoint(path)  # a kill came between the two
                trainer.run()
                self.finish(trainer)
            summary = self.summarise(time.perf_counter() - started)
            emit(RunFinished(summary=summary.plain()))
            summary.write(session.folder.summary)  # with this the run is over
        return summary

    def _keep_encoder(self) -> None:
        """Have the encoder that no group trains in the run directory, once."""
        encoder = self.session.backbone.encoder.state_dict(prefix="encoder.")
        if damaged := self.session.checkpoints(self.session.groups[0]).keep_frozen(encoder):
            self.session.warn(damaged)

    def newest(self) -> dict[str, Path | None]:
        """Return the checkpoint that each group goes on from. Warns of damaged ones."""
        newest = {}
        for group in self.session.groups:
            path, damaged = self.session.checkpoints(group).newest()
            for line in damaged:
                self.session.warn(f"{line}; {'using ' + path.name if path else 'starting over'}")
            newest["+".join(group)] = path
        return newest

    def open_reporters(self, stack: ExitStack) -> Emit:
        """Open the recipe's reporters until `stack` closes; returns the function that hands an event to each."""
        session, folder = self.session, self.session.folder.path
        report = open_reporters(stack, session.recipe.reporters, folder, newest=session.newest, warn=session.warn)
        if (listen := self.listen) is None:
            return report

        def emit(event: Event) -> None:
            report(event)
            listen(event)

        return emit

    def _announce(self, trainer: Trainer, steps: Mapping[str, int], recorded: Recorded, emit: Emit) -> None:
        facts = self.session.start_facts(trainer.learner.parameters.values())
        if steps:  # first, so that no reporter takes this for the beginning
            group, step = list(steps.items())[-1]
            emit(RunResumed(**facts, group=group, step=step, steps=dict(steps)))
        if not recorded.started:
            emit(RunStarted(**facts))
            for note in self.session.notes:
                emit(note)

    def trainer(self, group: list[str], emit: Emit) -> Trainer:
        """Build the trainer of a group of tasks, at step 0."""
        session, recipe = self.session, self.session.recipe
        name, last = "+".join(group), group == session.groups[-1]
        # every group starts from the same pretrained encoder; the last one, or who leaves it as it is, has the original
        original = last or session.is_frozen
        encoder = session.backbone.encoder if original else copy.deepcopy(session.backbone.encoder)
        model = session.model(encoder, group).to(session.device)
        feed = self._feed(group)
        every, epochs = recipe.evaluation.every, recipe.training.epochs
        needs_epochs = (epochs and name not in self.budgeted) or every == "epoch"
        per_epoch = self._steps_per_epoch(feed) if needs_epochs else 0
        feed.steps = steps = self.budgeted.get(name) or recipe.training.steps or (epochs or 0) * per_epoch
        checkpoints = session.checkpoints(group)
        learner = Learner(
            model,
            seed=recipe.seed,
            steps=steps,
            group=name,
            precision=session.precision,
            # on a GPU each check is a synchronisation, so it waits for the end of the step unless a skip needs it
            check_each_loss=session.device.type == "cpu" or recipe.training.on_nonfinite == "skip",
            anneal=recipe.teachers.anneal if recipe.teachers is not None else "linear",
        )
        return Trainer(
            recipe=recipe,
            group=name,
            several=len(session.groups) > 1,
            learner=learner,
            feed=feed,
            steps=steps,
            evaluate_every=every if isinstance(every, int) else per_epoch if every == "epoch" else steps,
            selection=self._selection(group, checkpoints),
            checkpoints=checkpoints,
            emit=emit,
            precision=session.precision,
            stop=self.stop,
            budget=share_of(recipe, group) if name in self.budgeted else None,
        )

    def _feed(self, group: Sequence[str]) -> Feed:
        recipe = self.session.recipe
        return Feed(
            {task: recipe.tasks[task] for task in group},
            {task: self.datasets[task, "train"] for task in group},
            recipe.sampler,
            seed=recipe.seed,
            grad_accumulation=recipe.training.grad_accumulation,
            pin=self.session.device.type == "cuda",
        )

    def _selection(self, group: Sequence[str], checkpoints: Checkpoints) -> Selection:
        session, options = self.session, self.session.recipe.evaluation
        return Selection(
            options=options,
            group="+".join(group),
            datasets={task: self.datasets[task, options.select_on] for task in group},
            metrics=session.metrics,
            checkpoints=checkpoints,
            seed=session.recipe.seed,
            precision=session.precision,
        )

    def _steps_per_epoch(self, feed: Feed) -> int:
        algorithm = self.session.recipe.algorithm
        steps: object = algorithm.steps_per_epoch(feed.batches_per_epoch)
        if not isinstance(steps, int) or steps < 1:
            message = f"algorithm '{algorithm.name}' counts {steps} steps in an epoch, expected a whole number from 1"
            raise fault(algorithm, message)
        return steps

    def finish(self, trainer: Trainer) -> None:
        """Score a group's best weights, and add its share of the summary: its model and optimizers can go."""
        model, split = trainer.learner.model, self.session.recipe.evaluation.report_on
        model.load_state_dict(trainer.checkpoints.best())
        for task in trainer.learner.tasks:
            self.scores[task], _ = self.session.score(model, self.datasets[task, split])
        self.sampling |= trainer.feed.usage()
        counts = {"steps": trainer.steps, "examples": trainer.learner.examples, "skipped_steps": trainer.skipped}
        for key, value in {**counts, **self._size(model), "seconds": trainer.seconds}.items():
            self.totals[key] = self.totals.get(key, 0) + value

    def _size(self, model: MultiTaskModel) -> dict[str, int]:
        """Return what a group's model adds to the size of what the run leaves, and to its cost for one text."""
        shared = self.session.is_frozen and "parameters" in self.totals  # the encoder, with the groups before
        parts = [model.heads, model.adapters, None if shared else model.encoder]
        parameters = sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())
        owners = {model.adapters.owner(task) for task in model.tasks} if model.adapters is not None else {""}
        return {"parameters": parameters, "encodings": len(owners)}

    def summarise(self, seconds: float) -> RunSummary:
        """Sum up the groups; `seconds` is the time that training and scoring took together."""
        scores = {task: self.scores[task] for task in self.session.recipe.tasks}
        totals = self.totals | {"seconds": round(self.totals["seconds"], 2), "total_seconds": round(seconds, 2)}
        cost = {"teacher_examples": teaching_cost(self.teachers)} if self.teachers else {}
        return self.session.summary(scores, **totals, **cost, sampling=self.sampling)


def steps_of(newest: Mapping[str, Path | None]) -> dict[str, int]:
    """Return the steps of checkpoints, by group; one without a checkpoint is left out."""
    return {group: int(path.name.removeprefix("step-")) for group, path in newest.items() if path}
