#!/usr/bin/env bash
# torch 2.13.0: torchrun --nnodes 1:2: a host that joins later does not get in, and ends the training of the one that was there.
#
# --nnodes MIN:MAX is for hosts that come and go: whoever comes later is to be met in a new round, in which all workers start
# again. In that round the agent of the first host has the address of its workers' store from the round before, and does not
# announce it again; the newcomer waits for it, and each for the other. After a minute both agents end with an error
# (DistStoreError), the first one's training with them, whatever --max-restarts says. With
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun every round announces its own, and the two go on together; the
# workers' TORCHELASTIC_RESTART_COUNT is still 0 then, though they were started twice.
# Seen on Linux, Python 3.11, two agents on one machine, the second one 10 s after the first:
#   as it is: agents ended with 1 and 1, worlds seen: 1
#   TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: agents ended with 0 and 0, worlds seen: 1, 2 (sum 2.0), restart counts: 0
# Takes two minutes. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null
cd "$folder"

cat > worker.py <<'PY'
import os
import time

import torch
import torch.distributed as dist

world, count = int(os.environ["WORLD_SIZE"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
with open(os.environ["SEEN"], "a") as file:
    print(f"world {world}: sum {one.item()}, restart count {count}", file=file)
while world == 1:  # a training that takes long
    time.sleep(1)
PY

agent() {
    SEEN="$1" OMP_NUM_THREADS=1 timeout 150 venv/bin/torchrun --nnodes 1:2 --nproc-per-node 1 --max-restarts 3 \
        --rdzv-backend c10d --rdzv-id "$1" --rdzv-endpoint "localhost:$2" --rdzv-conf last_call_timeout=3 \
        --monitor-interval 1 worker.py > "$1-$3.log" 2>&1
}

both() {
    local first second one=0 two=0
    agent "$1" "$2" first & first=$!
    for _ in $(seq 60); do [ -s "$1" ] && break; sleep 1; done
    sleep 10
    agent "$1" "$2" second & second=$!
    wait "$first" || one=$?
    wait "$second" || two=$?
    echo "$1: agents ended with $one and $two; $(sort "$1" | uniq -c | tr -s ' ' | paste -sd ';')"
}

both shared 29881
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 both own 29882
errors=$(grep -l DistStoreError shared-first.log shared-second.log | wc -l)
echo "agents with a DistStoreError: $errors"
grep -q "world 2" shared && exit 1
[ "$errors" = 2 ]
[ "$(grep -c "world 2: sum 2.0, restart count 0" own)" = 2 ]
