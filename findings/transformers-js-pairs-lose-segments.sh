#!/usr/bin/env bash
# transformers.js 4.3.2: a pair has no token types where tokenizer_config.json names PreTrainedTokenizerFast, and the
# model is given zeros.
#
# tokenizer.json's post-processor says which token type each text of a pair has, and with that class Python's
# AutoTokenizer gives token_type_ids as it says. One would expect the same of the same two files in transformers.js.
# There the class in tokenizer_config.json decides alone: only some, BertTokenizer among them, return token types, the
# generic one returns none unless a call says `return_token_type_ids: true`. A model whose graph has the input
# token_type_ids then gets zeros, without a warning, so that a classifier of pairs gives other probabilities.
# Seen on Linux, Node 20. The same tokenizer.json under three configurations:
#   PreTrainedTokenizerFast        {"input_ids":["2","4","3","5","3"],"token_type_ids":null}
#   PreTrainedTokenizerFast, asked {"input_ids":["2","4","3","5","3"],"token_type_ids":["0","0","0","1","1"]}
#   BertTokenizer                  {"input_ids":["2","4","3","5","3"],"token_type_ids":["0","0","0","1","1"]}
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{"name": "show", "version": "1.0.0", "type": "module"}' > package.json
npm install --silent --no-audit --no-fund --ignore-scripts @huggingface/transformers@4.3.2

for class in PreTrainedTokenizerFast BertTokenizer; do
    mkdir -p "models/$class"
    cat > "models/$class/tokenizer_config.json" <<JSON
{"tokenizer_class": "$class", "pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]",
 "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
JSON
    cat > "models/$class/tokenizer.json" <<'JSON'
{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
 "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
 "pre_tokenizer": {"type": "BertPreTokenizer"},
 "post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
  "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
           {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
  "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
 "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
  "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "why": 4, "because": 5}}}
JSON
done

cat > show.mjs <<'JS'
import { AutoTokenizer, env } from "@huggingface/transformers";
import assert from "assert";
env.allowRemoteModels = false;
env.localModelPath = "./models/";
const show = async (name, more) => {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const { input_ids, token_type_ids } = tokenizer("why", { text_pair: "because", ...more });
  const plain = (tensor) => (tensor ? Array.from(tensor.data, String) : null);
  const found = { input_ids: plain(input_ids), token_type_ids: plain(token_type_ids) };
  console.log(name, JSON.stringify(more), JSON.stringify(found));
  assert.deepEqual(found.input_ids, ["2", "4", "3", "5", "3"]);
  return found.token_type_ids;
};
const types = ["0", "0", "0", "1", "1"];
assert.equal(await show("PreTrainedTokenizerFast", {}), null);
assert.deepEqual(await show("PreTrainedTokenizerFast", { return_token_type_ids: true }), types);
assert.deepEqual(await show("BertTokenizer", {}), types);
JS
node show.mjs
echo "as described"
