#!/usr/bin/env bash
# torchjd 0.18.0: GradVac, Nash-MTL and DWA cannot be saved and loaded, so a training that goes on is another one.
#
# All three go by what they saw before, and are torch modules, so one saves their state_dict beside the model's.
# GradVac's holds its moving averages of cosines, which its load_state_dict then refuses as "unexpected": the buffer is
# None until the first call. A strict=False passes over them without a word. Those of NashMTL and DWA are empty:
# the last weights and the losses of past epochs are plain attributes, so loading succeeds and restores nothing.
# Seen on a CPU, Linux, Python 3.11: names in the state_dict; loading it into a new object; whether the next answer of
# that one is the answer of the first:
#   GradVac: 2 names; refused, RuntimeError; another answer with strict=False
#   NashMTL: 0 names; loaded; another answer
#   DWA: 0 names; loaded; another answer
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 "torchjd[nash-mtl]==0.18.0" cvxpy==1.9.3 ecos==2.0.14 2>/dev/null

"$folder/venv/bin/python" - <<'PY'
import warnings

warnings.filterwarnings("ignore")  # of cvxpy, about ECOS
from importlib.metadata import version

import torch
from torchjd.aggregation import GradVac, NashMTL
from torchjd.scalarization import DWA

JACOBIANS = [torch.tensor([[1.0, 0.0, 2.0], [1.0, 1.0, 1.5]]), torch.tensor([[0.2, 1.0, 0.0], [1.0, 0.1, 0.0]])]


def combine(aggregator, call):
    torch.manual_seed(call)  # GradVac draws the order of tasks
    return aggregator(JACOBIANS[call])


def weigh(dwa, epoch):
    loss = dwa(torch.tensor([1.0, 0.5 ** (epoch + 1)]))
    dwa.step()
    return loss


def story(make, call, calls):
    """How many names there are to save, what loading says, and whether the next answer is the same."""
    first, second = make(), make()
    for i in range(calls):
        call(first, i)
    saved = first.state_dict()
    try:
        second.load_state_dict(saved)
        loaded = "loaded"
    except RuntimeError as error:
        assert "Unexpected key(s)" in str(error)
        second.load_state_dict(saved, strict=False)
        loaded = "refused"
    same = torch.allclose(call(first, calls), call(second, calls), rtol=1e-3)
    return len(saved), loaded, "the same answer" if same else "another answer"


print("torchjd", version("torchjd"), "torch", torch.__version__)
found = {
    "GradVac": story(GradVac, combine, 1),
    "NashMTL": story(lambda: NashMTL(2, update_weights_every=2), combine, 1),
    "DWA": story(DWA, weigh, 2),
}
for name, seen in found.items():
    print(f"{name}: {seen[0]} names; {seen[1]}; {seen[2]}")
expected = {"GradVac": (2, "refused"), "NashMTL": (0, "loaded"), "DWA": (0, "loaded")}
raise SystemExit(found != {name: (*seen, "another answer") for name, seen in expected.items()})
PY
