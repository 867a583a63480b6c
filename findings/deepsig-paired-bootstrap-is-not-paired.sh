#!/usr/bin/env bash
# deepsig 1.2.8 (deep-significance): its paired bootstrap test draws the two lists of scores apart, so nothing is paired.
#
# bootstrap_test is documented as the paired bootstrap, for two systems on the same examples, seeds or folds. But each
# resample takes other places of `scores_a` than of `scores_b`, so that what the places have in common, a hard
# example or a lucky seed, counts as noise. Lists of unequal length are refused, as if it mattered. Nothing is said: a
# difference that is the same at every place gets the p of two unrelated lists, and shuffling one list changes little.
# Seen on Linux, Python 3.11, numpy 2.4.6, scipy 1.17.1, ten pairs that all differ by .05 to .12, p-values one-sided:
#   bootstrap_test 0.406, with one list shuffled 0.390; permutation_test beside it 0.003;
#   by hand, with the same places of both lists 0.000; paired t-test 4e-08
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q deepsig==1.2.8 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 joblib==1.6.0 2>/dev/null

cat > "$folder/pairs.py" <<'PY'
import warnings
from importlib.metadata import version

import numpy as np

warnings.filterwarnings("ignore")
from deepsig import bootstrap_test, permutation_test
from scipy.stats import ttest_rel

draw = np.random.default_rng(0)
b = draw.normal(0, 1, 10)
a = b + draw.normal(0.1, 0.02, 10)
tested = bootstrap_test(a, b, seed=0)
shuffled = bootstrap_test(a, draw.permutation(b), seed=0)
permuted = permutation_test(a, b, seed=0)
differences = a - b
resampled = draw.choice(differences, (1000, 10)).mean(axis=1)
by_hand = float((resampled >= 2 * differences.mean()).mean())
student = ttest_rel(a, b, alternative="greater").pvalue
print("deepsig", version("deepsig"), f"pairs differ by {differences.min():.2f} to {differences.max():.2f}")
print(f"bootstrap_test {tested:.3f}, with one list shuffled {shuffled:.3f}; permutation_test {permuted:.3f}")
print(f"by hand, with the same places of both lists {by_hand:.3f}; paired t-test {student:.0e}")
raise SystemExit(not (tested > 0.3 and shuffled > 0.3 and permuted < 0.01 and by_hand < 0.01 and student < 1e-6))
PY
"$folder/venv/bin/python" "$folder/pairs.py"
