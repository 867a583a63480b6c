#!/usr/bin/env bash
# submitit 1.5.4: helpers.clean_env(), meant for submitting a job from within a job, also hides where SLURM is configured.
#
# A job that SLURM runs has SLURM_JOB_ID, SLURM_CPUS_PER_TASK and so on, which a job that it submits would inherit. The
# context takes away every SLURM_*, SRUN_* and SBATCH_* variable instead: SLURM_CONF, without which sbatch looks for the
# configuration elsewhere, and SBATCH_ACCOUNT or SBATCH_PARTITION, by which users and sites set defaults for all their
# jobs. Outside of a job it does the same: a submission that worked without it goes to another account.
# Seen on Linux, Python 3.11, with a stand-in for sbatch that prints its environment. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q submitit==1.5.4 2>/dev/null

mkdir "$folder/bin"
printf '#!/bin/sh\nenv > "%s/seen"\necho Submitted batch job 17\n' "$folder" >"$folder/bin/sbatch"
printf '#!/bin/sh\n' >"$folder/bin/srun"
chmod +x "$folder"/bin/*

PATH="$folder/bin:$PATH" SLURM_CONF=/etc/slurm/here.conf SBATCH_ACCOUNT=me "$folder/venv/bin/python" - "$folder" <<'PY'
import contextlib
import sys
from pathlib import Path

import submitit

folder = Path(sys.argv[1])
executor = submitit.SlurmExecutor(folder=folder / "logs")
seen = []
for context in (contextlib.nullcontext(), submitit.helpers.clean_env()):
    with context:
        executor.submit(print, "hello")
    lines = (folder / "seen").read_text().splitlines()
    seen.append(sorted(line for line in lines if line.startswith(("SLURM_CONF=", "SBATCH_ACCOUNT="))))
print("submitit", submitit.__version__)
print("sbatch without the context has", seen[0])
print("sbatch within it has", seen[1])
raise SystemExit(seen != [["SBATCH_ACCOUNT=me", "SLURM_CONF=/etc/slurm/here.conf"], []])
PY
