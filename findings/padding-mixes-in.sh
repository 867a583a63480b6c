#!/usr/bin/env bash
# transformers 5.23.0: for six of its encoders a text's vectors depend on how far its batch is padded.
#
# With an attention mask one would expect that padding changes nothing, and for BERT and most others that holds to the
# last digits. But FNet has no mask at all (its Fourier transform runs over the padding), Funnel's and Nystromformer's
# pooled segments and landmarks reach into it, ConvBERT's convolution and MobileBERT's trigrams read the token after the
# last one, and YOSO's mask becomes all ones (1.0 + mask / 10000, as whole numbers). No warning says so; who embeds texts
# in batches gets vectors that depend on the batch.
# Seen on Linux, Python 3.11, CPU: the largest difference of a hidden state of a text of 6 tokens, alone and beside one
# of 40: see the output. Fails if one of the six stops mixing, or BERT begins to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 2>/dev/null

cat > "$folder/mix.py" <<'PY'
import torch
import transformers as t

t.logging.set_verbosity_error()
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=100)
funnel = dict(block_sizes=[2, 2], num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=48, vocab_size=100)
mobile = dict(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32)
makers = {
    "BERT": lambda: t.BertModel(t.BertConfig(**sizes)),
    "FNet": lambda: t.FNetModel(t.FNetConfig(**sizes)),
    "Funnel": lambda: t.FunnelModel(t.FunnelConfig(**funnel)),
    "Nystromformer": lambda: t.NystromformerModel(t.NystromformerConfig(**sizes)),
    "ConvBERT": lambda: t.ConvBertModel(t.ConvBertConfig(**sizes, embedding_size=32)),
    "MobileBERT": lambda: t.MobileBertModel(t.MobileBertConfig(**sizes, **mobile)),
    "YOSO": lambda: t.YosoModel(t.YosoConfig(**sizes, max_position_embeddings=128)),
}
right = True
for name, make in makers.items():
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for values in model.parameters():  # trained weights are not zero at the row of padding either
            values.normal_(0, 0.3)
    short = torch.arange(5, 11)[None]
    ids = torch.zeros(2, 40, dtype=torch.long)
    ids[0, :6], ids[1] = short[0], torch.arange(20, 60)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    with torch.no_grad():
        alone = model(input_ids=short, attention_mask=torch.ones_like(short)).last_hidden_state[0]
        beside = model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :6]
    difference = float((alone - beside).abs().max() / alone.abs().max())
    print(f"{name}: largest difference {difference:.1e} of the largest value")
    right &= difference < 1e-5 if name == "BERT" else difference > 1e-3
raise SystemExit(not right)
PY
"$folder/venv/bin/python" "$folder/mix.py"
