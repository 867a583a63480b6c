#!/usr/bin/env bash
# sentence-transformers 6.2.0: with several data sets NO_DUPLICATES leaves samples of an epoch out, without a word.
#
# The proportional sampler, the default with several data sets, is documented to use all samples of each. It takes as many
# batches of each as its batch sampler announces, and NoDuplicatesBatchSampler announces samples / batch size. Where texts
# recur it makes smaller batches, so more of them (unless the last is dropped), and these are not asked for; its warning is
# for too few batches, not for too many. A data set of texts with the names of their classes is such a one, or of several
# questions to one passage. What is left out is not by chance: a batch has a recurring text once, so frequent ones lose most.
# Seen on Linux, Python 3.11, torch 2.13.0, transformers 5.24.0: 100 texts with one of 4 class names and 100 other pairs,
# batch size 16, one epoch: 14 batches, with 28 of 100 and 100 of 100 samples; the first data set alone: 7 announced,
# 25 made. Where 70 of the texts have one class and the others 10 each, 7 of the 70 are seen. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 sentence-transformers==6.2.0 transformers==5.24.0 datasets==5.2.0 2>/dev/null

cat > "$folder/epoch.py" <<'PY'
import logging
from collections import Counter
from importlib.metadata import version

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler, ProportionalBatchSampler
from torch.utils.data import ConcatDataset

logging.basicConfig()  # what is warned of is shown


def epoch(classes):
    size = len(classes)
    texts = Dataset.from_dict({"anchor": [f"text {i}" for i in range(size)], "positive": classes})
    other = {"anchor": [f"question {i}" for i in range(size)], "positive": [f"answer {i}" for i in range(size)]}
    generator, both = torch.Generator(), [texts, Dataset.from_dict(other)]
    each = [NoDuplicatesBatchSampler(data, 16, drop_last=False, generator=generator, seed=1) for data in both]
    sampler = ProportionalBatchSampler(ConcatDataset(both), each, generator=generator, seed=1)
    batches = list(sampler)
    seen = [index for batch in batches for index in batch]
    frequent = Counter(classes[index] for index in seen if index < size)["class 0"]
    first = sum(index < size for index in seen)
    print(f"announced {len(sampler)}, made {len(batches)} batches; seen {first} of {size} and {len(seen) - first} of {size}")
    alone = len(each[0]), len(list(each[0]))
    print(f"the first data set alone: announced {alone[0]}, made {alone[1]}; seen of class 0: {frequent}")
    return len(sampler), len(batches), first, len(seen) - first, alone, frequent


print("sentence-transformers", version("sentence-transformers"))
even = epoch([f"class {index % 4}" for index in range(100)])
uneven = epoch(["class 0"] * 70 + [f"class {1 + index % 3}" for index in range(30)])
raise SystemExit(even != (14, 14, 28, 100, (7, 25), 7) or uneven[-1] != 7)
PY
"$folder/venv/bin/python" "$folder/epoch.py"
