"""Measurements of mtmeta against its peers and against the machine. Not shipped in the wheel; needs the dev extra.

    python -m benchmarks.train      training and evaluation rate against transformers and sentence-transformers
    python -m benchmarks.precision  bf16 against fp32 and against transformers in its best setting
    python -m benchmarks.predict    `mtmeta predict` against onnxruntime and sentence-transformers
    python -m benchmarks.quality    the same scores, losses and predictions in fp32 and bf16
    python -m benchmarks.backbones  backbone bert against backbone hf on the same weights
    python -m benchmarks.profile    operators of one training step
    python -m benchmarks.scaling    time and memory against batch size, length and number of tasks
    python -m benchmarks.meta       share of a meta-iteration outside gradients and inner steps
    python -m benchmarks.multi_output  one pass for several labels of a text against a pass for each
    python -m benchmarks.export     exports of a run beside the run itself, on real sentences
    python -m benchmarks.data       tokenization, start-up, and memory on a file of ten million rows

Machines are noisy. Everything compared is interleaved in one run and given as the median of per-round ratios with
quartiles; absolute rates are for orientation only. RESULTS.md holds what was measured, and with which command.
"""
