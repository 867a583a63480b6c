#!/usr/bin/env bash
# torch 2.13.0 on a CPU: a product in bf16 is compiled for its number of rows, and forgotten after some 1,000 others.
#
# torch.mm of bf16 matrices goes to oneDNN, which makes machine code for the exact sizes and keeps it, 1,024 primitives in
# all. Batches of text without padding, or padded to their own longest, have another number of tokens nearly every time,
# and a layer has four products forward and eight backward: the cache turns over within an epoch, so that the product of a
# batch of an epoch ago is compiled as if it were new. With padding to one length, or in fp32 (which is not oneDNN's),
# nobody sees it. What helps is to fill batches up to one of few sizes, or ONEDNN_PRIMITIVE_CACHE_CAPACITY.
# Seen on Linux, Python 3.11, a CPU with AMX: 2 sizes twice each: 2 compiled; the first of them after 1,100 other sizes:
# compiled again; with ONEDNN_PRIMITIVE_CACHE_CAPACITY=4096: kept. [n, 384] x [384, 1152] for 300 sizes from 16 to 4,800:
# compiling took 1,435 ms and multiplying 2,399 ms, on a busy machine.
# Fails if that changes (times are shown, not checked). Wants a CPU with AVX-512; elsewhere torch goes another way.
set -euo pipefail
if ! grep -qw avx512bw /proc/cpuinfo; then
    echo "no AVX-512 here: torch does not hand bf16 products to oneDNN" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null

cat > "$folder/products.py" <<'PY'
import sys
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
import torch

width, wide, *sizes = map(int, sys.argv[1:])
weight = torch.ones(width, wide, dtype=torch.bfloat16)
for rows in sizes:
    torch.mm(torch.ones(rows, width, dtype=torch.bfloat16), weight)
PY

products() { # lines of oneDNN's own log
    OMP_NUM_THREADS=2 ONEDNN_VERBOSE=profile_create,profile_exec "$folder/venv/bin/python" "$folder/products.py" "$@" |
        grep -E '^onednn_verbose,v1,primitive,(create|exec).*,matmul,'
}
compiled() { grep -c 'create:cache_miss' || true; }

others=$(seq 48 16 17632) # 1,100
few=$(products 64 64 16 32 16 32 | compiled)
again=$(products 64 64 16 $others 16 | compiled)
more=$(ONEDNN_PRIMITIVE_CACHE_CAPACITY=4096 products 64 64 16 $others 16 | compiled)
echo "torch 2.13.0: 2 sizes twice: $few compiled; 1 and 1,100 others and the first again: $again; with room for 4096: $more"
products 384 1152 $(seq 16 16 4800) |
    awk -F, '/create:cache_miss/ {made += $NF} /,exec,/ {run += $NF}
             END {printf "[n, 384] x [384, 1152], 300 sizes: compiling took %.0f ms and multiplying %.0f ms\n", made, run}'
[ "$few $again $more" = "2 1102 1101" ]
