#!/usr/bin/env bash
# timm 1.0.31: ModelEmaV2 and ModelEmaV3 take every step into the average of a tied weight twice.
#
# They go through the model's state_dict, in which a weight that two modules share, such as an embedding and the output
# layer of a language model, stands under both names. In the average it is one tensor too, and so moves once for each
# name: by 1 - decay^2 instead of 1 - decay, which is half the memory of all other weights. Without a word; the averaged
# model is one whose parts are averages over different stretches of the training. With exclude_buffers=True ModelEmaV3
# goes through the parameters, each once. torch.optim.swa_utils.AveragedModel, beside it, moves each once either way.
# Seen on Linux, Python 3.11, torch 2.13.0, decay .9, after one update from 0 towards 1, the tied weight and another one:
#   ModelEmaV2 0.19 0.10, ModelEmaV3 0.19 0.10, ModelEmaV3 without buffers 0.10 0.10, AveragedModel 0.10 0.10
# Fails if that changes.
#
# Of timm the one file is used, which is plain torch, so that torchvision is not installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/timm" timm==1.0.31 2>/dev/null
mkdir "$folder/file"
cp "$folder/timm/timm/utils/model_ema.py" "$folder/file"

cat > "$folder/tied.py" <<'PY'
import warnings

warnings.filterwarnings("ignore")  # numpy is not installed
import torch
from model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY = 0.9


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.other, self.output = nn.Embedding(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.output.weight = self.embedding.weight


def averaged(make, update):
    model = Tied()
    for value in (0.0, 1.0):
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        if not value:
            average = make(model)
        update(average, model)
    return round(average.module.output.weight[0, 0].item(), 2), round(average.module.other.weight[0, 0].item(), 2)


def torch_average(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)


found = {
    "ModelEmaV2": averaged(lambda model: ModelEmaV2(model, DECAY), ModelEmaV2.update),
    "ModelEmaV3": averaged(lambda model: ModelEmaV3(model, DECAY), ModelEmaV3.update),
    "without buffers": averaged(lambda model: ModelEmaV3(model, DECAY, exclude_buffers=True), ModelEmaV3.update),
    "AveragedModel": averaged(torch_average, AveragedModel.update_parameters),
}
print("timm 1.0.31, torch", torch.__version__)
print(", ".join(f"{name} {tied:.2f} {other:.2f}" for name, (tied, other) in found.items()))
twice, once = (0.19, 0.1), (0.1, 0.1)
raise SystemExit(list(found.values()) != [twice, twice, once, once])
PY
PYTHONPATH="$folder/file" "$folder/venv/bin/python" "$folder/tied.py"
