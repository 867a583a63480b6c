#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer does not use a tokenizer.json as it stands where the folder names another class.
#
# tokenizer.json holds a whole tokenizer, and up to version 4 every fast tokenizer was made of it. One would expect it to
# hold, or an error. But a class with a constructor of its own takes the vocabulary out of the file and builds normaliser,
# pre-tokenizer and model anew, by tokenizer_config.json, or by its own defaults; without tokenizer_class in
# tokenizer_config.json the model type of config.json names the class. Neither a warning nor an error says so.
# Seen on Linux, Python 3.11: a cased tokenizer.json of a BERT lowercases, so that "Paris" becomes the unknown token;
# pieces of XLM-R under model type bert all become unknown tokens. With tokenizer_class PreTrainedTokenizerFast the file
# is taken as it stands.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 2>/dev/null

cat > "$folder/show.py" <<'PY'
"""Two made-up tokenizers, each as its tokenizer.json has it and as AutoTokenizer does, with and without a class."""
import json
import pathlib
import sys
import warnings

warnings.simplefilter("ignore")
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: E402
from transformers import AutoTokenizer, logging  # noqa: E402

logging.set_verbosity_error()
words = Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "Paris": 4, "is": 5}, unk_token="[UNK]"))
words.normalizer = normalizers.BertNormalizer(lowercase=False)
words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581Paris", -1.0), ("\u2581is", -1.0)], unk_id=0))
pieces.pre_tokenizer = pre_tokenizers.Metaspace()
same = []
for name, made, unknown in (("words", words, "[UNK]"), ("pieces", pieces, "<unk>")):
    for kind in (None, "PreTrainedTokenizerFast"):
        folder = pathlib.Path(sys.argv[1]) / f"{name}-{kind}"
        folder.mkdir()
        made.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text('{"model_type": "bert"}')
        settings = {"unk_token": unknown} | ({"tokenizer_class": kind} if kind else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Paris is", add_special_tokens=False).tokens
        auto = AutoTokenizer.from_pretrained(folder).tokenize("Paris is")
        same.append(file == auto)
        print(f"{name}, tokenizer_class {kind}: tokenizer.json {file}, AutoTokenizer {auto}")
sys.exit(same != [False, True, False, True])
PY
echo "transformers $("$folder/venv/bin/python" -c 'import importlib.metadata as m; print(m.version("transformers"))')"
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>/dev/null
