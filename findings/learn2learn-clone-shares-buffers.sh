#!/usr/bin/env bash
# learn2learn 0.2.0: MAML.clone() copies parameters alone; what a clone does to buffers it does to the model.
#
# By its documentation clone() gives a module "whose parameters and buffers are torch.cloned". Of the buffers it clones
# those that require a gradient, which hardly any does. So the running statistics of a batch normalisation are one tensor
# in the model and in all its clones: each pass of an inner loop moves them for every later task, and none is put back.
# Seen on Linux, Python 3.11, torch 2.13.0: after one pass of a clone the model's running_mean is another one, and it is the
# clone's own tensor; its weights are not. higher 0.2.1, beside it, copies buffers: the model's stay as they were, and what
# the inner loop made of them is lost. Fails if that changes.
#
# The package does not build on Python 3.11 and newer; the three files of it that are used are plain Python.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 higher==0.2.1 2>/dev/null
"$folder/venv/bin/pip" download -q learn2learn==0.2.0 --no-deps --no-binary :all: -d "$folder" 2>/dev/null
tar xzf "$folder/learn2learn-0.2.0.tar.gz" -C "$folder"
mkdir "$folder/files"
(cd "$folder/learn2learn-0.2.0" &&
    cp --parents learn2learn/algorithms/{maml,base_learner}.py learn2learn/utils/__init__.py "$folder/files")

cat > "$folder/buffers.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
import higher
import torch
from learn2learn.algorithms.maml import MAML
from torch import nn


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()


torch.manual_seed(0)
inputs, model = torch.randn(8, 4), network()
before = model[1].running_mean.clone()
clone = MAML(model, lr=0.1).clone()
clone(inputs)
moved = not torch.equal(before, model[1].running_mean)
one = clone.module[1].running_mean is model[1].running_mean, clone.module[1].weight is model[1].weight
print(f"learn2learn 0.2.0: a pass of a clone moves the model's running_mean: {moved}; one tensor: buffer {one[0]}, weight {one[1]}")

model = network()
before = model[1].running_mean.clone()
with higher.innerloop_ctx(model, torch.optim.SGD(model.parameters(), 0.1), copy_initial_weights=False) as (copy, _):
    copy(inputs)
beside = not torch.equal(before, model[1].running_mean)
print(f"higher 0.2.1: a pass of the copy moves the model's running_mean: {beside}")
raise SystemExit((moved, one, beside) != (True, (True, False), False))
PY
PYTHONPATH="$folder/files" "$folder/venv/bin/python" "$folder/buffers.py"
