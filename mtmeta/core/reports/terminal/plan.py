"""The plan of a run (`mtmeta run --dry-run`), as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.terminal.console import Folding, console_for_tables
from mtmeta.core.wording import byte_text, plural, safe

SPLITS = ("train", "dev", "test")


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print the steps of the run, a table of its tasks, and how long it would take."""
    console = console_for_tables()
    folder = safe(plan["run"], 200)
    console.print(f"plan of {safe(plan['recipe'])}, nothing was trained for good or written to {folder}")
    rows = {
        "run directory": f"{folder} ({_state(plan)})",
        "algorithm": safe(plan["algorithm"]),
        "backbone": f"{safe(plan['backbone'])}, at most {plan['max_length']} tokens, {safe(plan['weights'], 24)}",
        "parameters": f"{plan['encoder_parameters']:,} encoder + {plan['own_parameters']:,} heads",
        "device": f"{safe(plan['device'])}, {plan['precision']}"
        + {"": "", "none": ", without instructions for it"}.get(plan["instructions"], f" by {plan['instructions']}")
        + (f", {plural(plan['threads'], 'thread')}" if plan["device"] == "cpu" else ""),
    }
    if any(task["train"]["file"] != task["train"]["name"] for task in plan["tasks"].values()):
        rows["data"] = safe(plan["data_root"], 200)  # not only the sample inside the package
    splits = [(name, split, task[split]) for name, task in plan["tasks"].items() for split in SPLITS if split in task]
    if bad := [f"{data['bad_rows']:,} of {safe(name)} {split}" for name, split, data in splits if data["bad_rows"]]:
        rows["left out"] = f"bad rows: {', '.join(bad)}"
    if plan["train_fraction"] != 1:
        rows["train fraction"] = f"{plan['train_fraction']:g} of every training set; the rows below are those used"
    for group in plan["groups"]:
        name = f" {'+'.join(map(safe, group['tasks']))}" * (len(plan["groups"]) > 1)
        rows[f"steps{name}"] = _steps(group)
        rows[f"checkpoints{name}"] = _checkpoints(group)
    if plan["teacher_examples"]:
        rows["teachers took"] = f"{plan['teacher_examples']:,} example-forwards, to be trained and to label"
    if plan["disk_bytes"] is not None:
        rows["on disk"] = f"{byte_text(plan['disk_bytes'], 'kB')} at most, one checkpoint more while it is written"
    for why in dict.fromkeys(plan["not_exported"].values()):
        forms = ", ".join(form for form, reason in plan["not_exported"].items() if reason == why)
        rows["not exported"] = f"{rows['not exported']}; " if "not exported" in rows else ""
        rows["not exported"] += f"{forms} ({safe(why, 300)})"
    if plan["algorithm_bytes"]:
        rows["algorithm holds"] = f"{byte_text(plan['algorithm_bytes'], 'kB')} of memory beside what joint takes"
    if plan["parts_bytes"]:
        rows["parts hold"] = (
            f"{byte_text(plan['parts_bytes'], 'kB')}, gradients of slots and shards until they are summed"
        )
    rows["memory so far"] = byte_text(plan["peak_memory_bytes"], "kB")
    width = max(map(len, rows))
    for name, text in rows.items():
        console.print(f"{name:{width}}  {text}")
    console.print(_tasks(console, plan["tasks"]))
    for note in plan["notes"]:
        console.print(f"note: {safe(note, 300)}")
    _show_seconds(console, plan["seconds"])


def _state(plan: Mapping[str, Any]) -> str:
    state = str(plan["state"])
    if state == "goes on":
        return "would go on at step " + ", ".join(f"{group['done']:,}" for group in plan["groups"])
    return {"new": "new", "finished": "finished: there is nothing to do; --fresh would start over"}.get(state, state)


def _steps(group: Mapping[str, Any]) -> str:
    about = "" if group["counted"] else "about "
    text = f"{group['steps']:,}"
    if group["examples"] is not None:
        text += f", {about}{group['examples']:,} example-forwards"
    evaluations = "evaluation" if group["evaluations"] == 1 else "evaluations"
    return text + f", {group['evaluations']:,} {evaluations} (every {group['evaluate_every']:,} steps)"


def _checkpoints(group: Mapping[str, Any]) -> str:
    size = f" of {byte_text(group['checkpoint_bytes'], 'kB')}" if group["checkpoint_bytes"] is not None else ""
    best = byte_text(group["best_bytes"], "kB")
    return f"{group['checkpoints']:,} scheduled{size}, {group['keep']} kept; best weights of {best}"


def _tasks(console: Any, tasks: Mapping[str, Mapping[str, Any]]) -> Folding:
    """Return the table of tasks, narrow enough for 80 columns; `--json` has more."""
    table = Folding(console)
    splits = [split for split in SPLITS[1:] if any(split in task for task in tasks.values())]
    for heading in ("task", "train", "rows", "batch", "inner", "examples", "epochs", *splits):
        table.add_column(heading, justify="left" if heading in ("task", "train") else "right")
    for name, task in tasks.items():
        kind = f" ({safe(task['task'])})" if task["task"] != name else ""
        known = task["examples"] is not None
        cells = [
            safe(name) + kind,
            safe(task["train"]["name"], 60),
            f"{task['train']['rows']:,}",
            f"{task['batch_size']:,}",
            f"{task['inner_steps']:,}",
            f"{task['examples']:,}" if known else "?",
            f"{task['epochs']:.2f}" if known else "?",
            *(f"{task[split]['rows']:,}" if split in task else "" for split in splits),
        ]
        table.add_row(*map(Text, cells))
    return table


def _show_seconds(console: Any, seconds: Mapping[str, Any] | None) -> None:
    if seconds is None:
        console.print("no estimate of the time: nothing was probed")
        return
    rows = {
        "training": (seconds["training"], f"{seconds['probed_steps']} steps timed"),
        "evaluations": (seconds["evaluating"], f"{seconds['evaluations']} of them"),
        "final scores": (seconds["scoring"], "with their intervals"),
        "in all": (seconds["total"], f"after {duration(seconds['loading'])} of loading"),
    }
    for name, (part, text) in rows.items():
        between = "" if part["low"] is None else f" ({duration(part['low'])} to {duration(part['high'])})"
        console.print(f"{name:12}  {duration(part['seconds'])}{between}; {text}")
    busy = f"; it waited for a processor for {seconds['waiting']:.0%} of them" if seconds["waiting"] >= 0.05 else ""
    probed = f"foretold by a probe of {duration(seconds['probing'])}{busy}"
    console.print(f"{probed}; the range has room for others and for a slow disk")


def duration(seconds: float) -> str:
    """Return a span of time with two figures or so: `8.2 s`, `95 s`, `14 min`, `3 h 20 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 180:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
