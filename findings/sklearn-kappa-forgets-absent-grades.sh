#!/usr/bin/env bash
# scikit-learn 1.9.1: cohen_kappa_score(weights="quadratic") measures distances between the grades that occur.
#
# With weights the kappa of grades 0 to 4 goes by how far a prediction is off. Without `labels` the grades are those that
# occur on either side, and distances are between their places among these: where a split lacks grades 1 and 2, grade 3 is one
# step from 0 and not three. So two splits, or two models, are measured by different rules, without a word, and the value may
# move either way. Numbers do not help: their values are not looked at.
# Seen on Linux, Python 3.11: .600 where the distances of the grades themselves give .677. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scikit-learn==1.9.1 2>/dev/null

cat > "$folder/kappa.py" <<'PY'
from statistics import fmean

from sklearn.metrics import cohen_kappa_score

labels, predictions = [0, 0, 0, 3, 3, 3], [0, 0, 3, 3, 3, 4]
plain = cohen_kappa_score(labels, predictions, weights="quadratic")
told = cohen_kappa_score(labels, predictions, labels=range(5), weights="quadratic")
observed = fmean((y - p) ** 2 for y, p in zip(labels, predictions))
by_hand = 1 - observed / fmean((y - p) ** 2 for y in labels for p in predictions)
print(f"scikit-learn 1.9.1: {plain:.3f}, with labels=range(5) {told:.3f}, by hand {by_hand:.3f}")
raise SystemExit((round(plain, 3), round(told, 3), round(by_hand, 3)) != (0.6, 0.677, 0.677))
PY
"$folder/venv/bin/python" "$folder/kappa.py"
