#!/usr/bin/env bash
# deepsig 1.2.8 (deep-significance): corrected p-values change places, and more comparisons count for less.
#
# bonferroni_correction sorts the p-values, multiplies them, and puts them back by the order that sorted them, not by its
# inverse: from three p-values on, those that are not sorted already may come back at each other's places. (The factors
# are n, n - 1, .. 1, which are Holm's.) Its tests sort first. aso(num_comparisons=n) and multi_aso ask for the level
# .95 + .05 / n, not 1 - .05 / n: two comparisons ask for .975, and the more there are, the closer it comes to
# no correction. For the one comparison of two models multi_aso asks for level 1, where the bound is always 1 or NaN.
# Seen on Linux, Python 3.11, numpy 2.4.6, scipy 1.17.1:
#   p-values .04 .6 .001 corrected: .6 .003 .08; the second, .6, is now below .05, and the third no longer
#   eps_min (A counts as better below .5) of 1, 2, 10 and 45 comparisons .293 .344 .301 .295, where level 1 - .05 / 45
#     has .522: not better
#   multi_aso of two models where the ranges of scores do not overlap: NaN, without the correction 0
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q deepsig==1.2.8 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 joblib==1.6.0 2>/dev/null

cat > "$folder/corrections.py" <<'PY'
import math
import warnings
from importlib.metadata import version

import numpy as np

warnings.filterwarnings("ignore")
from deepsig import aso, bonferroni_correction, multi_aso

print("deepsig", version("deepsig"))
given = [0.04, 0.6, 0.001]
corrected = bonferroni_correction(given).round(4).tolist()
print("p-values", *given, "corrected:", *corrected)

draw = np.random.default_rng(0)
better, worse = draw.normal(0.7, 1, 20), draw.normal(0, 1, 20)
few = {"num_bootstrap_iterations": 100, "dt": 0.02, "seed": 0, "show_progress": False}
bounds = {n: float(aso(better, worse, num_comparisons=n, **few)) for n in (1, 2, 10, 45)}
same = float(aso(better, worse, confidence_level=0.95 + 0.05 / 45, **few))
right = float(aso(better, worse, confidence_level=1 - 0.05 / 45, **few))
print("eps_min of 1, 2, 10, 45 comparisons:", *(f"{bound:.3f}" for bound in bounds.values()))
print(f"eps_min at level .95 + .05 / 45: {same:.3f}, at level 1 - .05 / 45: {right:.3f}")

models = [(better + 9).tolist(), worse.tolist()]
two = float(multi_aso(models, **few)[0, 1])
plain = float(multi_aso(models, use_bonferroni=False, **few)[0, 1])
print(f"multi_aso of two models: {two:.3f}, without the correction {plain:.3f}")

astray = corrected == [0.6, 0.003, 0.08]
weaker = bounds[1] < bounds[45] < bounds[10] < bounds[2] and math.isclose(bounds[45], same) and bounds[2] < 0.5 < right
raise SystemExit(not (astray and weaker and math.isnan(two) and plain == 0))
PY
"$folder/venv/bin/python" "$folder/corrections.py"
