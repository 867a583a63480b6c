#!/usr/bin/env bash
# peft 0.21.2: an adapter goes onto any encoder of its shape, and tensors that the model has no place for are dropped.
#
# adapter_config.json names the encoder that an adapter was trained beside (base_model_name_or_path), so one would expect
# that PeftModel.from_pretrained compares it with the model it is given. It does not, and there is no hash either: beside
# another encoder the same files give other vectors. And where the file also holds a trained head, which the config names
# in modules_to_save, loading it onto an encoder, as AutoModel has it, leaves the head out. Neither warns; the result is
# a model that computes something else, or has lost its head.
# Seen on Linux, Python 3.11, CPU, transformers 5.23.0. Fails if peft begins to refuse or to warn.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 2>/dev/null

cat > "$folder/load.py" <<'PY'
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

t.logging.set_verbosity_error()
t.logging.disable_progress_bar()
folder = Path(sys.argv[1])
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=100)
ids = torch.arange(5, 15)[None]
encoders = []
for seed in range(2):
    torch.manual_seed(seed)
    encoders.append(t.BertModel(t.BertConfig(**sizes)).eval())
    encoders[seed].save_pretrained(folder / f"encoder{seed}")
options = dict(r=2, target_modules=["query", "value"], init_lora_weights=False)
adapted = get_peft_model(t.AutoModel.from_pretrained(folder / "encoder0"), LoraConfig(**options)).eval()
with torch.no_grad():
    wanted = adapted(input_ids=ids).last_hidden_state
adapted.save_pretrained(folder / "adapter")
config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
assert config["base_model_name_or_path"] == str(folder / "encoder0")
(folder / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier"]}))
file = folder / "adapter" / "adapter_model.safetensors"
head = {"base_model.model.classifier.weight": torch.ones(2, 32), "base_model.model.classifier.bias": torch.ones(2)}
save_file({**load_file(file), **head}, file)

right = True
for seed in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = t.AutoModel.from_pretrained(folder / f"encoder{seed}")
        loaded = PeftModel.from_pretrained(encoder, str(folder / "adapter")).eval()
    with torch.no_grad():
        difference = float((loaded(input_ids=ids).last_hidden_state - wanted).abs().max())
    said = [str(w.message)[:100] for w in caught if "is_gradient_checkpointing" not in str(w.message)]
    kept = [name for name in loaded.state_dict() if "classifier" in name]
    print(f"onto encoder{seed}, trained beside encoder0: difference {difference:.1e}, tensors of the head", end=" ")
    print(f"{len(head)} in the file, {len(kept)} loaded; warnings: {said}")
    right &= not said and not kept and (difference < 1e-5) == (seed == 0)
raise SystemExit(not right)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/load.py" "$folder"
