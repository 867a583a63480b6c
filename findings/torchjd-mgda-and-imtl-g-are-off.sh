#!/usr/bin/env bash
# torchjd 0.18.0: MGDA stops short of the shortest vector; of opposite gradients IMTL-G climbs the loss of one.
#
# MGDA is the shortest vector in the convex hull of the gradients. For g, -g and a third one it is 0, which says that no
# step helps all. A hundred rounds of Frank-Wolfe, the default, zigzag towards it, and leave 5% on the third.
# IMTL-G asks for equal projections on all g_t / |g_t|, which for g and -3 g only d = 0 has, with weights (3/4, 1/4). The
# pseudo-inverse of the singular Gramian gives (-1/2, 3/2) instead, and so d = -5 g: a step against d raises the loss of
# the first task.
# Seen on a CPU, Linux, Python 3.11, in float64:
#   MGDA of (1, -2, 1), (-1, 2, -1), (-2, -1, 0): weights 0.472, 0.474, 0.054, length 0.121 in place of 0
#   IMTL-G of g and -3 g: weights -0.500, 1.500, projections -5.000, 5.000 in place of 0, 0
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchjd==0.18.0 2>/dev/null

"$folder/venv/bin/python" - <<'PY'
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
from importlib.metadata import version

import torch
from torchjd.aggregation import IMTLGWeighting, MGDAWeighting


def shown(tensor):
    return ", ".join(f"{x:.3f}" for x in tensor.tolist())


print("torchjd", version("torchjd"), "torch", torch.__version__)
rows = torch.tensor([[1.0, -2.0, 1.0], [-1.0, 2.0, -1.0], [-2.0, -1.0, 0.0]], dtype=torch.float64)
assert (rows[0] + rows[1]).norm() == 0  # so the shortest vector is 0
weights = MGDAWeighting()(rows @ rows.T)
length = (weights @ rows).norm()
print(f"MGDA of (1, -2, 1), (-1, 2, -1), (-2, -1, 0): weights {shown(weights)}, length {length:.3f} in place of 0")

pair = torch.tensor([[1.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
balanced = IMTLGWeighting()(pair @ pair.T)
projections = pair / pair.norm(dim=1, keepdim=True) @ (balanced @ pair)
print(f"IMTL-G of g and -3 g: weights {shown(balanced)}, projections {shown(projections)} in place of 0, 0")
raise SystemExit(not (length > 0.1 and projections[0] < -1 < 1 < projections[1]))
PY
