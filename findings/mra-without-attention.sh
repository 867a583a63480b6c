#!/usr/bin/env bash
# transformers 5.23.0: on a machine without its compiled kernel MRA's attention is a tensor of zeros, without an error.
#
# MRA computes its attention by a kernel from the hub, on a GPU. Where that is not there one would expect an error, or a
# slower way. But mra2_attention returns zeros of the right shape: the model loads, runs and trains, and no token ever
# sees another one. At import a line says that the kernel could not be loaded only where a GPU is found.
# Seen on Linux, Python 3.11, CPU: hidden states of a token are the same whatever stands around it. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 2>/dev/null

cat > "$folder/mra.py" <<'PY'
import torch
import transformers as t

t.logging.set_verbosity_error()
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=100)
blind = {}
for name, model in {"BERT": t.BertModel(t.BertConfig(**sizes)), "MRA": t.MraModel(t.MraConfig(**sizes))}.items():
    ids = torch.arange(5, 69)[None]
    other = ids.clone()
    other[0, 1:] = 90  # all tokens but the first are others
    with torch.no_grad():
        hidden = [model.eval()(input_ids=i, attention_mask=torch.ones_like(i)).last_hidden_state[0, 0] for i in (ids, other)]
    blind[name] = bool(torch.equal(*hidden))
    print(f"{name}: the first token's hidden state {'does not depend' if blind[name] else 'depends'} on the 63 others")
raise SystemExit(blind != {"BERT": False, "MRA": True})
PY
"$folder/venv/bin/python" "$folder/mra.py"
