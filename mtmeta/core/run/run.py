"""`mtmeta run`: recipe -> registry -> parts -> training, group by group -> best weights -> summary."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.events import Event, RunFinished, RunResumed, RunStarted, Warned
from mtmeta.core.data.dataset import Dataset, class_counts
from mtmeta.core.data.feed import Feed, check_episode
from mtmeta.core.data.loading import check_parts
from mtmeta.core.data.subsets import overlap, subset, without_fold
from mtmeta.core.data.teachers import TeacherRows, hashes_of, teachers_of, teaching_cost
from mtmeta.core.distributed.group import Group
from mtmeta.core.errors import Stopped
from mtmeta.core.machine import fitting_threads, memory_errors, own_settings
from mtmeta.core.methods.adapters import find_places
from mtmeta.core.registry.guard import fault
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.event_stream import Recorded, open_reporters, rewind_events
from mtmeta.core.run.fetch import bring, local_backbone, splits_read
from mtmeta.core.run.ranks.joining import (
    APART,
    SPREAD,
    agree_on_lock,
    agree_on_recipe,
    agree_on_versions,
    check_shared,
    how_spread,
)
from mtmeta.core.run.ranks.spool import spooled, spooled_checkpoints, still_reported, take_up
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import OpenRecipe, Session
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.lock import lock_folder
from mtmeta.core.training.budget import share_of, steps_on_budget
from mtmeta.core.training.calibration import calibrate
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.evaluation import Score
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.selection import Selection
from mtmeta.core.training.spread.agreement import Agreement, Apart, InStep
from mtmeta.core.training.spread.learner import SpreadLearner
from mtmeta.core.training.trainer import Trainer

Emit = Callable[[Event], None]


@own_settings()
def train(request: RunRequest) -> RunSummary:
    """Carry out a request: train its recipe, score the best weights and return the summary; see `mtmeta.run`.

    Under torchrun each rank returns the same.
    """
    ranks = Group(request.ranks)
    if not ranks.leads:  # one rank speaks
        request = replace(request, warn=lambda text: None, watcher=None, on_event=None)
    # a rank that went by itself would be lost to the others: all look for signals after the same step
    noted = request.stop.deferred() if request.stop is not None and ranks.world > 1 else nullcontext()
    with ranks.joined(), noted:
        return _train(request, ranks)


def _train(request: RunRequest, ranks: Group) -> RunSummary:
    agree_on_versions(ranks)
    opened = ranks.together(lambda: OpenRecipe(request))
    recipe, folder = opened.recipe, opened.folder
    agree_on_recipe(recipe, ranks)
    opened.continued = ranks.settle(opened.continued)[0]
    if opened.continued and (summary := _finished(folder, request, ranks)):
        return summary
    training = ranks.together(lambda: _prepare(opened, request, ranks))
    with ExitStack() as stack:
        # a directory that is there is held before the work begins, another one is made only when all is in order
        if held := ranks.settle(folder.path.exists())[0]:
            _hold(training, stack, request, ranks)
        ranks.together(training.load)
        stack.enter_context(fitting_threads(training.session.backbone.encoder))
        lock = training.lock()
        agree_on_lock(lock, ranks)
        check_shared(folder.path, ranks)
        if not held:
            _hold(training, stack, request, ranks)
        # again: another process may have held it till now
        usable = ranks.together(lambda: folder.check_usable(recipe, fresh=request.fresh))
        continued = ranks.settle(usable)[0]
        if continued and (summary := _finished(folder, request, ranks)):
            return summary
        ranks.together(lambda: _begin(training, lock, request, continued=continued))
        return training.run(continued)


def _prepare(opened: OpenRecipe, request: RunRequest, ranks: Group) -> Training:
    """Return the training of an opened recipe, if all it needs is installed; before anything that takes time."""
    for reporter in opened.recipe.reporters if ranks.leads else ():
        reporter.require()
    opened.recipe.algorithm.require()
    return Training(opened.session(ranks), request.stop, request.on_event)


def _hold(training: Training, stack: ExitStack, request: RunRequest, ranks: Group) -> None:
    """Lock the run directory until `stack` closes; the rank that writes does."""
    path = training.session.folder.path
    take_away = functools.partial(training.stop.take_away, str(path))

    def hold() -> None:
        if ranks.leads:
            stack.enter_context(lock_folder(path, request.warn, wait=request.wait, lost=take_away))

    ranks.together(hold)


def _begin(training: Training, lock: dict[str, Any], request: RunRequest, *, continued: bool) -> None:
    """Make a directory ready for a run, new or going on."""
    session, folder = training.session, training.session.folder
    if not continued:
        folder.begin(session.recipe, lock, session.backbone.files)
        return
    folder.check_own(appending=True)
    allowed = {"allow_changed_data": request.allow_changed_data, "allow_inexact": request.allow_inexact}
    folder.check_tokenizer(session.backbone)
    folder.check_same(lock, training.files, **allowed)
    folder.clear()
    session.warn_of_slowness()  # a run's notes are shown where it begins


def _finished(folder: RunDir, request: RunRequest, ranks: Group) -> RunSummary | None:
    summary = ranks.together(folder.finished)
    if ranks.settle(summary is not None)[0]:
        request.warn(f"{folder.path} is finished; --fresh trains it again")
        return (summary or RunSummary.read(folder.summary)).moved(folder.path)  # since it ended, perhaps
    return None


class Training:
    """A session that is trained, from its data to its summary."""

    def __init__(self, session: Session, stop: StopRequest | None = None, listen: Emit | None = None) -> None:
        self.session, self.listen = session, listen
        self.ranks = session.ranks
        self.spread = how_spread(session.recipe, len(session.groups), session.ranks)
        """What the ranks share out; empty for a process by itself."""
        if self.spread == APART:
            session.ranks = Group()
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
        self.calibration: dict[str, dict[str, Any]] = {}
        """What was fitted to the best weights of each task, if the recipe asks for it."""
        self.totals: dict[str, dict[str, float]] = {}
        """Steps, seconds and so on of each group that is finished."""

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
        session.note_calibration()
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
                session.tasks[name] = recipe.tasks[name].for_training(class_counts(dataset, recipe.tasks[name]))
                check_parts(recipe.tasks[name], split, dataset)
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
        session, started, lead = self.session, time.perf_counter(), self.ranks.leads
        with ExitStack() as stack:
            newest = self._agreed_newest() if continued else {}
            steps = steps_of(newest)
            stands = still_reported(self._folders(), steps)
            events = session.folder.path / "events.jsonl"
            recorded = rewind_events(events, stands) if continued and lead else Recorded()
            reported = {*recorded.checkpoints, *spooled_checkpoints(self._folders())}
            recorded.checkpoints = {(group, step) for group, step in self.ranks.settle(sorted(reported))[0]}
            emit = self.open_reporters(stack) if lead else lambda event: None
            if session.is_frozen:
                self.ranks.together(self._keep_encoder)

            def begin(trainer: Trainer) -> None:
                self._announce(trainer, stands, recorded, emit)
                if lead:
                    take_up(self._folders(), steps, emit, session.folder.path)
                self._meet_apart()

            if self.spread == APART:
                session.folder = RunDir(session.folder.path)  # every rank writes its own groups
            if not (groups := self._own_groups()) or groups[0] is not session.groups[0]:
                self._meet_apart()
            for group in groups:
                with self._reporting(group, emit) as report:
                    trainer = self.trainer(group, report)
                    self._train(trainer, newest, recorded, begin if group is session.groups[0] else None)
                    if session.follow_first and group is session.groups[0]:
                        session.backbone.encoder.load_state_dict(trainer.learner.model.encoder.state_dict())
                        self.ranks.together(self._keep_encoder)
            self._collect(emit)
            summary = self.summarise(time.perf_counter() - started)
            if lead:
                emit(RunFinished(summary=summary.plain()))
                summary.write(session.folder.summary)  # with this the run is over
        return summary

    def _train(
        self,
        trainer: Trainer,
        newest: Mapping[str, Path | None],
        recorded: Recorded,
        begin: Callable[[Trainer], None] | None,
    ) -> None:
        """Train a group from its checkpoint, if there is one, and score it; the first one has the run `begin`."""
        path, ranks = newest.get(trainer.group), self.session.ranks
        with ranks.owing():
            if path is not None:
                trainer.restore(*trainer.checkpoints.load(path, verified=True))
            # without a checkpoint the run starts over, and the best weights until then are no longer its own
            trainer.checkpoints.go_back(trainer.step, trainer.selection.links, trainer.is_scheduled)
            if begin is not None:
                begin(trainer)
            is_recorded = (trainer.group, trainer.step) in recorded.checkpoints
            if path is not None and trainer.is_scheduled(trainer.step) and not is_recorded:
                trainer.announce_checkpoint(path)  # a kill came between the two
        with self._stopping_together():
            trainer.run()
        with ranks.owing():
            self.finish(trainer)

    # -- groups on ranks of their own

    def _own_groups(self) -> list[list[str]]:
        """Return the groups that this rank trains."""
        groups = self.session.groups
        return groups[self.ranks.rank :: self.ranks.world] if self.spread == APART else groups

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each group's checkpoints."""
        return {"+".join(group): self.session.checkpoints(group).folder for group in self.session.groups}

    def _meet_apart(self) -> None:
        if self.spread == APART:
            self.ranks.meet()

    @contextmanager
    def _reporting(self, group: Sequence[str], emit: Emit) -> Iterator[Emit]:
        """Yield what takes the events of a group: the reporters, or a file until all ranks are done."""
        if self.spread != APART or self.ranks.leads:
            yield emit
            return
        with spooled(self.session.checkpoints(list(group)).folder, self.session.folder.path) as spool:
            yield spool

    def _collect(self, emit: Emit) -> None:
        """Wait for the groups of other ranks, and take over what came of them."""
        if self.spread != APART:
            return

        def look() -> None:
            heard = self.ranks.heard("stop")
            if self.stop.signal and not heard:
                self.ranks.tell("stop", self.stop.signal)
            if asked := heard or self.stop.signal:
                raise Stopped(asked, "with its own groups trained")

        with self._stopping_together():
            self.ranks.meet(math.inf, look)
        mine = {task: score.json() for task, score in self.scores.items()}
        parts = {"sampling": self.sampling, "totals": self.totals, "calibration": self.calibration}
        told = self.ranks.settle({"scores": mine, **parts})
        for each in told:
            self.scores |= {task: Score(**score) for task, score in each["scores"].items()}
            self.sampling |= each["sampling"]
            self.totals |= each["totals"]
            self.calibration |= each["calibration"]
        if self.ranks.leads:
            steps = {group: int(totals["steps"]) for group, totals in self.totals.items()}
            take_up(self._folders(), steps, emit, self.session.folder.path)

    @contextmanager
    def _stopping_together(self) -> Iterator[None]:
        """Within, a stop is one that all ranks have agreed on, saved for and end with 0.

        torchrun would take another code for a failure, and start all of them again.
        """
        try:
            yield
        except Stopped as stopped:
            if self.spread:
                stopped.exit_code, stopped.echoed = 0, not self.ranks.leads
            raise

    def _agreed_newest(self) -> dict[str, Path | None]:
        """Return the checkpoints that the first rank goes on from, after it has verified them."""
        found = self.ranks.together(lambda: self.newest() if self.ranks.leads else {})
        names = self.ranks.settle({group: path and path.name for group, path in found.items()})[0]
        return {group: name and self._folders()[group] / name for group, name in names.items()}

    def _keep_encoder(self) -> None:
        """Have the encoder that no group trains, or none but the first, in the run directory, once."""
        encoder = self.session.backbone.encoder.state_dict(prefix="encoder.")
        if damaged := self.session.checkpoints(self.session.groups[-1]).keep_frozen(encoder):
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
        original = last or session.leaves_encoder(group)
        encoder = session.backbone.encoder if original else copy.deepcopy(session.backbone.encoder)
        model = session.model(encoder, group).to(session.device)
        feed = self._feed(group)
        every, epochs = recipe.evaluation.every, recipe.training.epochs
        needs_epochs = (epochs and name not in self.budgeted) or every == "epoch"
        per_epoch = self._steps_per_epoch(feed) if needs_epochs else 0
        feed.steps = steps = self.budgeted.get(name) or recipe.training.steps or (epochs or 0) * per_epoch
        checkpoints = session.checkpoints(group)
        learner = self._learner(model, feed, name)
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
            agreement=self._agreement(),
        )

    def _agreement(self) -> Agreement:
        if self.spread == APART:
            return Apart(self.ranks)
        return InStep(self.ranks) if self.spread else Agreement()

    def _learner(self, model: MultiTaskModel, feed: Feed, name: str) -> Learner:
        session, recipe = self.session, self.session.recipe
        options: dict[str, Any] = {
            "seed": recipe.seed,
            "steps": feed.steps,
            "group": name,
            "precision": session.precision,
            # on a GPU each check is a synchronisation, so it waits for the end of the step unless a skip needs it
            "check_each_loss": session.device.type == "cpu" or recipe.training.on_nonfinite == "skip",
            "anneal": recipe.teachers.anneal if recipe.teachers is not None else "linear",
        }
        shards, chunks = recipe.training.shards, recipe.training.grad_accumulation
        if shards is None and self.spread != SPREAD:
            return Learner(model, **options)
        return SpreadLearner(model, ranks=self.ranks, shards=shards, chunks=chunks, feed=feed, **options)

    def _feed(self, group: Sequence[str]) -> Feed:
        recipe = self.session.recipe
        return Feed(
            {task: recipe.tasks[task] for task in group},
            {task: self.datasets[task, "train"] for task in group},
            recipe.sampler,
            seed=recipe.seed,
            grad_accumulation=recipe.training.grad_accumulation * (recipe.training.shards or 1),
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
            ranks=session.ranks,
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
        ranks = self.session.ranks
        best = trainer.checkpoints.best() if ranks.leads else {}
        # told, not read by each: a network drive may still show another rank the link to weights before
        model.load_weights(ranks.broadcast_all(best, 0, self.session.device))
        for task in trainer.learner.tasks:
            scored = self.session.score(model, self.datasets[task, split])
            self.scores |= {name: score for name, (score, _) in scored.items()}
            if self.session.recipe.evaluation.calibrate:
                self._calibrate(model, task)
        self.sampling |= trainer.feed.usage()
        counts = {"steps": trainer.step, "examples": trainer.learner.examples, "skipped_steps": trainer.skipped}
        if trainer.stopping:
            counts["planned_steps"] = trainer.steps
        first = trainer.group == "+".join(self.session.groups[0])
        self.totals[trainer.group] = {**counts, **self._size(model, first), "seconds": trainer.seconds}

    def _calibrate(self, model: MultiTaskModel, task: str) -> None:
        """Fit the temperature of a task; each rank does it for itself, on the whole split that selects."""
        options = self.session.recipe.evaluation
        dataset = self.datasets[task, options.select_on]
        with memory_errors(f"calibrating task '{task}'", "lower evaluation.batch_tokens"):
            found = calibrate(model, dataset, batch_tokens=options.batch_tokens, precision=self.session.precision)
        if found is not None:
            self.calibration[task] = found.json()

    def _size(self, model: MultiTaskModel, first: bool) -> dict[str, int]:
        """Return what a group's model adds to the size of what the run leaves, and to its cost for one text."""
        session = self.session
        shared = (session.is_frozen or session.follow_first) and not first  # the encoder, with the first group
        parts = [model.heads, model.adapters, None if shared else model.encoder]
        parameters = sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())
        encodings: dict[str, int] = {}  # of a pair in one sequence, in both orders, there are two
        for name, task in model.tasks.items():
            owner = model.adapters.owner(name) if model.adapters is not None else ""
            several = model.vectors(name) if task.inputs in ("cross", "choices") else 1
            encodings[owner] = max(encodings.get(owner, 1), several)
        return {"parameters": parameters, "encodings": sum(encodings.values())}

    def summarise(self, seconds: float) -> RunSummary:
        """Sum up the groups; `seconds` is the time that training and scoring took together."""
        scores = {task: self.scores[task] for task in self.session.recipe.scored}
        every = ["+".join(group) for group in self.session.groups]
        totals = {key: sum(self.totals[group][key] for group in every) for key in self.totals[every[0]]}
        totals |= {"seconds": round(totals["seconds"], 2), "total_seconds": round(seconds, 2)}
        more: dict[str, Any] = {"teacher_examples": teaching_cost(self.teachers)} if self.teachers else {}
        if self.calibration:
            more["calibration"] = {task: self.calibration[task] for task in scores if task in self.calibration}
        return self.session.summary(scores, **totals, **more, sampling=self.sampling)


def steps_of(newest: Mapping[str, Path | None]) -> dict[str, int]:
    """Return the steps of checkpoints, by group; one without a checkpoint is left out."""
    return {group: int(path.name.removeprefix("step-")) for group, path in newest.items() if path}
