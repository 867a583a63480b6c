#!/usr/bin/env bash
# torchjd 0.18.0: CAGrad and UPGrad answer as if gradients were 0 where their squared lengths sum to less than 1e-4.
#
# Both are defined by inner products alone, so gradients of half the length should give half the direction. Where
# all gradients together are shorter than 1e-2, as they may be towards the end of a training, CAGrad returns 0, so the
# model stands still, and UPGrad the mean, which opposes a task: what it exists to avoid. Nothing is said. PCGrad, which
# has no such limit, scales as it should.
# Seen on a CPU, Linux, Python 3.11, the two gradients (1, 0) and (-2, 1) times a scale s, the direction over s:
#   s = 1: CAGrad -0.22 0.50, UPGrad 0.10 0.70, PCGrad 0.20 1.40
#   s = 1e-3: CAGrad 0.00 0.00, UPGrad -0.50 0.50, PCGrad 0.20 1.40
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 "torchjd[cagrad,quadprog-projector]==0.18.0" \
    cvxpy==1.9.3 qpsolvers==4.13.0 quadprog==0.1.14 2>/dev/null

"$folder/venv/bin/python" - <<'PY'
import warnings

warnings.filterwarnings("ignore")
from importlib.metadata import version

import torch
from torchjd.aggregation import CAGrad, PCGrad, UPGrad

print("torchjd", version("torchjd"), "torch", torch.__version__)
gradients = torch.tensor([[1.0, 0.0], [-2.0, 1.0]])
found = {}
for scale in (1.0, 1e-3):
    for method in (CAGrad(c=0.4), UPGrad(), PCGrad()):
        direction = (method(scale * gradients) / scale).tolist()
        found[type(method).__name__, scale] = [round(x, 2) + 0.0 for x in direction]
    shown = (f"{name} {x:.2f} {y:.2f}" for (name, at), (x, y) in found.items() if at == scale)
    print(f"s = {scale:g}:", ", ".join(shown))
small = {name: direction for (name, at), direction in found.items() if at == 1e-3}
large = {name: direction for (name, at), direction in found.items() if at == 1.0}
mean = gradients.mean(dim=0).tolist()
stands = small["CAGrad"] == [0.0, 0.0] != large["CAGrad"]
opposes = small["UPGrad"] == mean != large["UPGrad"]
raise SystemExit(not (stands and opposes and small["PCGrad"] == large["PCGrad"]))
PY
