#!/usr/bin/env bash
# torch 2.13.0 on a CPU: attention has second derivatives with dropout, and none without.
#
# scaled_dot_product_attention takes its own kernel for CPUs where there is no dropout, and plain operators where there is
# some. The backward of the kernel has no derivative. So a gradient of a gradient through BERT, as second-order MAML wants
# it, works in training with dropout 0.1, and fails with dropout 0, in evaluation mode, and in every test that switches
# dropout off to compare numbers.
# Seen on Linux, Python 3.11: dropout 0.1: second derivative there; 0: "derivative for
# aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented"; 0 within sdpa_kernel(SDPBackend.MATH): there.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null

cat > "$folder/twice.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

cases = {"dropout 0.1": (0.1, nullcontext()), "dropout 0": (0.0, nullcontext())}
cases["dropout 0, math"] = 0.0, sdpa_kernel(SDPBackend.MATH)
found = {}
for name, (dropout, backend) in cases.items():
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    try:
        with backend:
            y = scaled_dot_product_attention(x, x, x, dropout_p=dropout)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)
        found[name] = "there"
    except RuntimeError as error:
        found[name] = str(error)
    print(f"torch {torch.__version__.partition('+')[0]}, {name}: second derivative: {found[name]}")
missing = "derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented"
raise SystemExit(list(found.values()) != ["there", missing, "there"])
PY
"$folder/venv/bin/python" "$folder/twice.py"
