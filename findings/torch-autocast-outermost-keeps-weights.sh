#!/usr/bin/env bash
# torch 2.13.0: an outer torch.autocast, even one with enabled=False, has a training go on with its first weights.
#
# A training step that enters autocast for its forward and leaves it again casts the weights anew each time. Put the loop
# into another autocast, as a helper or notebook may, and the bf16 copies live until the outermost one ends, though each
# inner one is left at every step. One would not expect it of an outer context that is switched off. Nothing is said:
# the optimizer moves the weights, gradients arrive, and the outputs are those of step 1. What helps is
# cache_enabled=False or torch.clear_autocast_cache() at each step.
# Seen on a CPU, Linux, Python 3.11, 4 steps of SGD; how many different outputs the same input had:
#   no outer context: 4; outer bf16: 1; outer enabled=False: 1; outer enabled=False, inner cache_enabled=False: 4
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null

"$folder/venv/bin/python" - <<'PY'
import contextlib
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
import torch


def outputs(outer, **inner):
    """How many different outputs four steps give for the same input, the weights being different at each."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 1), torch.ones(4, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    seen, weights = [], set()
    with outer:
        for _ in range(4):
            weights.add(tuple(layer.weight.flatten().tolist()))
            with torch.autocast("cpu", torch.bfloat16, **inner):
                loss = layer(x).float().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
    assert len(weights) == 4
    return len(set(seen))


print("torch", torch.__version__)
found = {
    "no outer context": outputs(contextlib.nullcontext()),
    "outer bf16": outputs(torch.autocast("cpu", torch.bfloat16)),
    "outer enabled=False": outputs(torch.autocast("cpu", enabled=False)),
    "outer enabled=False, inner cache_enabled=False": outputs(
        torch.autocast("cpu", enabled=False), cache_enabled=False
    ),
}
print(*(f"{name}: {count}" for name, count in found.items()), sep="; ")
raise SystemExit(list(found.values()) != [4, 1, 1, 4])
PY
