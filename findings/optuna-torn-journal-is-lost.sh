#!/usr/bin/env bash
# optuna 5.0.0: a line of the journal that was cut short, as by a full disk or a kill, costs the study at the next write.
#
# JournalFileBackend appends lines to a file, and JournalStorage is recommended where many processes share a study. What
# a writer leaves of a line when it dies in the middle is passed over by readers. But the next writer appends behind it,
# on the same line: what it wrote is lost with it, its own call fails with an AttributeError, and with the write after that
# nobody can open the study any more, though every line before is whole.
# Seen on Linux, Python 3.11, of a journal with two trials whose third begins with 20 bytes of a line:
#   opened: 2 trials
#   ask: AttributeError
#   ask by another process: JSONDecodeError
#   opened again: JSONDecodeError
#   cut where it was whole, opened again: 2 trials
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optuna==5.0.0 2>/dev/null
cd "$folder"

"$folder/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
PATH = "journal.log"


def storage():
    return JournalStorage(JournalFileBackend(PATH))


def opened():
    return optuna.load_study(study_name="s", storage=storage())


def kind(action):
    try:
        return action()
    except Exception as error:
        return type(error).__name__


print("optuna", version("optuna"))
optuna.create_study(study_name="s", storage=storage()).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
with open(PATH, "ab") as file:
    file.write(open(PATH, "rb").read()[:20])
found = [kind(lambda: len(opened().trials))]
whole = os.path.getsize(PATH) - 20
study = opened()
found += [kind(study.ask), kind(lambda: opened().ask()), kind(lambda: len(opened().trials))]
os.truncate(PATH, whole)
found += [kind(lambda: len(opened().trials))]
for what, seen in zip(("opened", "ask", "ask by another process", "opened again", "cut where it was whole, opened again"), found):
    print(f"{what}: {seen}" + " trials" * isinstance(seen, int))
raise SystemExit(found != [2, "AttributeError", "JSONDecodeError", "JSONDecodeError", 2])
PY
