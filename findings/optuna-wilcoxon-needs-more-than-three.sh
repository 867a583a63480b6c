#!/usr/bin/env bash
# optuna 5.0.0: WilcoxonPruner never prunes a trial with three instances or fewer, whatever it is compared with.
#
# It compares a trial with the best one instance by instance, such as the seeds of a training or the folds of a
# cross-validation, and prunes where Wilcoxon's signed-rank test gives p < p_threshold, 0.1 by default. The smallest p of
# n pairs is 2^-n, so of three pairs 0.125: nothing is pruned, without a warning, and n_startup_steps is 2. Of four pairs
# it is 0.0625, after all four were paid for.
# Seen: a trial worse by a million on every instance, should_prune() after each of five:
#   False False False True True
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optuna==5.0.0 scipy==1.17.1 2>/dev/null

"$folder/venv/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import optuna

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner())
best = study.ask()
for instance in range(5):
    best.report(1e6, instance)
study.tell(best, 1e6)
trial, found = study.ask(), []
for instance in range(5):
    trial.report(0.0, instance)
    found.append(trial.should_prune())
print("optuna", version("optuna"))
print(*found)
raise SystemExit(found != [False, False, False, True, True])
PY
