"""Tiny folders with random weights, in the shapes that public checkpoints have: each with what may come of it.

`SHAPES` names them. Pieces are learned here from the sample data and a few sentences in other scripts.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.families import sentences

OK = "ids and states"
OTHERS = (
    "\u6771\u4eac\u90fd\u306b\u4f4f\u3093\u3067\u3044\u308b\u4eba\u306f\u591a\u3044\u3067\u3059\u3002",
    "\u4e2d\u6587 \u53e5\u5b50 \u5f88\u77ed",
    "Caf\xe9 na\xefve \xdcber Stra\xdfe \xe9t\xe9",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "It IS a Very good Film, they SAID",
)
PROBES = (
    "",
    " ",
    "a",
    "It is a very good film.",
    "IT IS A VERY GOOD FILM.",
    "Caf\xe9 Na\xefve cafe\u0301 \xdcber Stra\xdfe",
    "\u6771\u4eac\u90fd\u306b\u4f4f\u3093\u3067\u3044\u308b\u4eba",
    "film\u4e2d\u6587film \u4e2d \u6587",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u041c\u0418\u0420",
    "emoji \U0001f600 and \U0001f468\u200d\U0001f469 there",
    "@USER said HTTPURL on covid-19, COVID-19 and covid-19s",
    "  @USER  HTTPURL  covid-19  ",
    "xcovid-19x @USER@USER",
    "[MASK] [CLS] [SEP] [PAD] [UNK] in a text",
    "<mask> <s> </s> <pad> <unk> in a text",
    "a <pad> in the middle of it",
    "tab\tand\nline end\r\n more",
    "1,000.50 don't!? (yes)",
    "\xa0nbsp \u2028 \x85 \u200b zero",
    "one two three " * 12,
    "x" * 120,
    "unaccustomed-ness_xyzzy",
    "the the the",
)


@dataclass(frozen=True)
class Shape:
    """A kind of folder; what comes of it by each backbone is `OK`, or words of the refusal."""

    name: str
    write: Callable[[Path], None]
    bert: str = OK
    hf: str = OK
    reference: str = "file"
    """What the ids must be: those of its tokenizer.json (`file`), or of transformers' AutoTokenizer (`auto`)."""
    note: str = ""
    """Words of a warning that must come."""
    at: str = ""
    """The folder inside it that holds the model."""


SHAPES: dict[str, Shape] = {}
UNSUPPORTED = "is not supported (bert, distilbert, electra, roberta, xlm-roberta; for others use backbone hf)"


def shape(name: str, **expected: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(write: Callable[[Path], None]) -> Callable[[Path], None]:
        SHAPES[name] = Shape(name, write, **expected)
        return write

    return keep


# ------------------------------------------------------------------------------------------------------------- pieces

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
XLMR = ("<s>", "<pad>", "</s>", "<unk>")
NAMED_WORDS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
NAMED_XLMR = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
ROUND, SQUARE = ("<s>", "</s>", "</s> </s>", ""), ("[CLS]", "[SEP]", "[SEP]", ":1")


@functools.cache
def corpus() -> tuple[str, ...]:
    return (*sentences(), *OTHERS * 20)


@functools.cache
def words(special: tuple[str, ...] = WORDS, *, lower: bool = True, around: tuple[str, ...] = SQUARE) -> str:
    """WordPiece."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(special), show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    return surrounded(made.to_str(), *around)


@functools.cache
def unigram(normalizer: str = "NFKC", *, around: tuple[str, ...] = ROUND) -> str:
    """XLM-R's kind of pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([getattr(normalizers, name)() for name in normalizer.split()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=list(XLMR), unk_token="<unk>", show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens(["<mask>"])
    return surrounded(made.to_str(), *around)


@functools.cache
def byte_pairs(processor: str = "roberta") -> str:
    """RoBERTa's kind of pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    if processor == "roberta":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    else:
        template = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return str(made.to_str())


def surrounded(text: str, begin: str, end: str, between: str, second: str) -> str:
    """A tokenizer.json that puts special tokens around: `second` is `:1` where the second text has its own type."""
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(text)
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {between} $B{second} {end}{second}",
        special_tokens=[(token, made.token_to_id(token)) for token in (begin, end)],
    )
    return str(made.to_str())


def changed(text: str, **values: Any) -> str:
    return json.dumps(json.loads(text) | values)


def listed(text: str) -> list[str]:
    """The vocabulary in the order of its ids."""
    from tokenizers import Tokenizer

    numbers = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    return sorted(numbers, key=lambda token: int(numbers[token]))


def vocab_txt(text: str) -> str:
    return "".join(f"{token}\n" for token in listed(text))


# ------------------------------------------------------------------------------------------------------------ folders

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save(
    folder: Path,
    kind: str,
    rows: int | str,
    whole: str | None = None,
    settings: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    shards: str = "",
    **config: Any,
) -> None:
    """Write config.json, weights (`rows` of embeddings, or as the vocabulary of a tokenizer.json), tokenizer files."""
    hf = importlib.import_module("transformers")
    count = rows if isinstance(rows, int) else len(listed(rows))
    sizes: dict[str, Any] = {**SMALL, "vocab_size": count, "max_position_embeddings": 66, **config}
    torch.manual_seed(1)
    model = getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes)).eval()
    model = model.to(dtype) if dtype else model
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    texts = {"tokenizer.json": whole, **(files or {})}
    if settings is not None:
        texts["tokenizer_config.json"] = json.dumps(settings)
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# BERT with the pieces of XLM-R, as multilingual MiniLM and e5 are, under every class that such folders name
MULTILINGUAL = {"do_lower_case": True, "model_max_length": 512, **NAMED_XLMR}
CLASSES = {
    "BertTokenizer": "tokenizer_class 'BertTokenizer' (it is Unigram)",
    "XLMRobertaTokenizer": "do_lower_case true (it keeps capitals)",
    "PreTrainedTokenizerFast": "do_lower_case true (it keeps capitals)",
    "RobertaTokenizer": "tokenizer_class 'RobertaTokenizer' (it is Unigram)",
    "": "tokenize_chinese_chars true (it does not set Chinese characters apart)",
}
for _class, _words in CLASSES.items():

    @shape(f"bert, XLM-R pieces, class {_class or 'missing'}", note=_words)
    def _(folder: Path, kind: str = _class) -> None:
        named = {"tokenizer_class": kind} if kind else {"tokenize_chinese_chars": True, "strip_accents": None}
        save(folder, "Bert", len(listed(unigram())) + 5, unigram(), named | MULTILINGUAL)


@shape("roberta, WordPiece, [UNK] at the padding id", note="do_lower_case false (it lowercases)")
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, **NAMED_WORDS}
    save(folder, "Roberta", words(), words(), settings, type_vocab_size=1, pad_token_id=1)


KLUE = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@shape("roberta, WordPiece, as klue has it")
def _(folder: Path) -> None:
    text = words(KLUE)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **NAMED_WORDS}
    save(folder, "Roberta", text, text, settings, type_vocab_size=1, pad_token_id=1)


@shape("roberta, WordPiece, two token types")
def _(folder: Path) -> None:
    text = words(KLUE)
    save(folder, "Roberta", text, text, {"tokenizer_class": "BertTokenizer"}, type_vocab_size=2, pad_token_id=1)


@shape("roberta, WordPiece, vocab.txt alone", reference="auto")
def _(folder: Path) -> None:
    files = {"vocab.txt": vocab_txt(words(KLUE))}
    settings = {"tokenizer_class": "BertTokenizer", **NAMED_WORDS}
    save(folder, "Roberta", words(KLUE), None, settings, files, type_vocab_size=1, pad_token_id=1)


# ------------------------------------------------------------------------------------------------- vocabularies alone

PYTHON_ONLY = {
    "BertJapaneseTokenizer": {"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic_lite"}},
    "PhobertTokenizer": {},
    "BertweetTokenizer": {},
    "RoFormerTokenizer": {},
    "TapasTokenizer": {},
}
for _class, _options in PYTHON_ONLY.items():
    _words = f"tokenizer_class '{_class}' cuts texts by Python code, which no backbone runs; save a tokenizer.json"

    @shape(f"bert, vocab.txt, class {_class}", bert=_words, hf=_words)
    def _(folder: Path, kind: str = _class, options: dict[str, Any] = _options) -> None:
        files = {"vocab.txt": vocab_txt(words()), "bpe.codes": "t h 10\nth e 8\n"}
        named = {"tokenizer_class": kind, "do_lower_case": False, **options}
        save(folder, "Bert", len(listed(words())) + 20, None, named, files)


IN_CONFIG = "config.json: tokenizer_class 'BertJapaneseTokenizer' cuts texts by Python code"


@shape("bert, vocab.txt, class in config.json", bert=IN_CONFIG, hf=IN_CONFIG)
def _(folder: Path) -> None:
    save(folder, "Bert", words(), None, None, {"vocab.txt": vocab_txt(words())})
    edit_config(folder, tokenizer_class="BertJapaneseTokenizer")


BY_HF = "is read by backbone hf alone where there is no tokenizer.json"


@shape(
    "bert, vocab.txt, class PreTrainedTokenizerFast",
    bert="is that of a tokenizer.json",
    hf="is that of a tokenizer.json",
)
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    save(folder, "Bert", words(), None, settings, {"vocab.txt": vocab_txt(words())})


@shape("bert, vocab.txt, class MPNetTokenizer", bert=f"'MPNetTokenizer' {BY_HF}", reference="auto")
def _(folder: Path) -> None:
    special = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    text = words(special, around=ROUND)
    settings = {"tokenizer_class": "MPNetTokenizer", **NAMED_XLMR, "unk_token": "[UNK]"}
    save(folder, "Bert", len(listed(text)) + 5, None, settings, {"vocab.txt": vocab_txt(text)})


@shape("bert, vocab.json, class HerbertTokenizer", bert=f"'HerbertTokenizer' {BY_HF}", reference="auto")
def _(folder: Path) -> None:
    numbers = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    for token in (*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"), "th", "the</w>"):
        numbers[token] = len(numbers)
    files = {"vocab.json": json.dumps(numbers), "merges.txt": "#version: 0.2\nt h\nth e</w>\n"}
    save(folder, "Bert", len(numbers), None, {"tokenizer_class": "HerbertTokenizer"}, files)


@shape("bert, vocab.txt, class of its own code", bert="'auto_map' asks for", hf="'auto_map' asks for")
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    save(folder, "Bert", words(), None, settings, {"vocab.txt": vocab_txt(words()), "own.py": "raise SystemExit\n"})


@shape("bert, tokenizer.json, class of its own code", note="'auto_map' names code, which is never run")
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    save(folder, "Bert", words(), words(), settings, {"own.py": "raise SystemExit\n"})


@shape("bert, vocab.txt, no tokenizer_config.json", reference="auto")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), None, None, {"vocab.txt": vocab_txt(words())})


@shape("bert, vocab.txt, cased", reference="auto")
def _(folder: Path) -> None:
    text = words(lower=False)
    settings = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}
    save(
        folder, "Bert", text, None, {"tokenizer_class": "BertTokenizerFast", **settings}, {"vocab.txt": vocab_txt(text)}
    )


@shape("bert, vocab.txt, special tokens of other names", reference="auto")
def _(folder: Path) -> None:
    text = words(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), around=ROUND)
    settings = {"tokenizer_class": "BertTokenizer", **NAMED_XLMR, "unk_token": "[UNK]"}
    save(folder, "Bert", text, None, settings, {"vocab.txt": vocab_txt(text)})


@shape("bert, vocab.txt and added_tokens.json", reference="auto")
def _(folder: Path) -> None:
    count = len(listed(words()))
    added = {"@USER": count, "HTTPURL": count + 1, "covid-19": count + 2}
    settings = {"tokenizer_class": "BertTokenizer", "additional_special_tokens": ["@USER"], **NAMED_WORDS}
    special = {**NAMED_WORDS, "additional_special_tokens": ["@USER"]}
    files = {"added_tokens.json": json.dumps(added), "special_tokens_map.json": json.dumps(special)}
    save(folder, "Bert", count + 3, None, settings, files | {"vocab.txt": vocab_txt(words())})


def flagged(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags


@shape("bert, vocab.txt and added_tokens_decoder", reference="auto")
def _(folder: Path) -> None:
    count = len(listed(words()))
    added = [
        flagged("@USER", special=True, lstrip=True),
        flagged("HTTPURL", rstrip=True, single_word=True),
        flagged("COVID-19", normalized=True, single_word=True),
    ]
    known = {str(number): flagged(token, special=True) for number, token in enumerate(WORDS)}
    decoder = known | {str(count + number): token for number, token in enumerate(added)}
    settings = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder, **NAMED_WORDS}
    save(folder, "Bert", count + 3, None, settings, {"vocab.txt": vocab_txt(words())})


WRONG_IDS = {
    "with a gap": ({"@USER": 1, "HTTPURL": 3}, "ids must be the vocabulary's, or follow it without gaps"),
    "that collide": ({"@USER": -400}, "gives token '@USER' the id"),
    "beyond the embeddings": ({"@USER": 0, "HTTPURL": 1}, "entries, embeddings have"),
}
for _what, (_added, _words) in WRONG_IDS.items():

    @shape(f"bert, added tokens {_what}", bert=_words, hf=_words)
    def _(folder: Path, added: dict[str, int] = _added, what: str = _what) -> None:
        count = len(listed(words()))
        files = {"added_tokens.json": json.dumps({token: count + number for token, number in added.items()})}
        rows = count + (1 if "beyond" in what else 8)
        save(folder, "Bert", rows, None, {"do_lower_case": True}, files | {"vocab.txt": vocab_txt(words())})


@shape("bert, tokenizer.json lacks a token of added_tokens.json", note="added_tokens.json says '@USER' is ")
def _(folder: Path) -> None:
    count = len(listed(words()))
    save(folder, "Bert", count + 1, words(), {}, {"added_tokens.json": json.dumps({"@USER": count})})


def roberta_files(text: str) -> dict[str, str]:
    model = json.loads(text)["model"]
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": f"#version: 0.2\n{merges}"}


@shape("roberta, vocab.json, added tokens and a leading space", reference="auto")
def _(folder: Path) -> None:
    count = len(listed(byte_pairs()))
    added = {"added_tokens.json": json.dumps({"@USER": count, "covid-19": count + 1})}
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True, **NAMED_XLMR}
    save(folder, "Roberta", count + 2, None, settings, roberta_files(byte_pairs()) | added, type_vocab_size=1)


@shape("bert with RoBERTa's vocab.json", reference="auto")
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "RobertaTokenizer", **NAMED_XLMR}
    save(folder, "Bert", byte_pairs(), None, settings, roberta_files(byte_pairs()))


@shape("xlm-roberta with RoBERTa's vocab.json", bert=f"'XLMRobertaTokenizer' {BY_HF}", hf="has neither")
def _(folder: Path) -> None:
    save(folder, "XLMRoberta", byte_pairs(), None, None, roberta_files(byte_pairs()), type_vocab_size=1)


# ------------------------------------------------------------------------------------------- what a tokenizer.json says


@shape("bert, cased tokenizer.json, do_lower_case beside it", note="do_lower_case true (it keeps capitals)")
def _(folder: Path) -> None:
    text = words(lower=False)
    save(folder, "Bert", text, text, {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **NAMED_WORDS})


@shape("bert, cased tokenizer.json, nothing beside it")
def _(folder: Path) -> None:
    save(folder, "Bert", words(lower=False), words(lower=False))


@shape("bert, lowercasing Unigram pieces")
def _(folder: Path) -> None:
    text = unigram("NFKD StripAccents Lowercase", around=ROUND)
    save(folder, "Bert", text, text, {"tokenizer_class": "AlbertTokenizer", "do_lower_case": True})


@shape("bert, pairs of one token type")
def _(folder: Path) -> None:
    text = words(around=("[CLS]", "[SEP]", "[SEP]", ""))
    save(folder, "Bert", text, text, {"tokenizer_class": "TokenizersBackend"})


ODD = "numbers the token types of pairs otherwise than 0"


@shape("bert, a token type for [CLS]", bert=ODD, hf=ODD)
def _(folder: Path) -> None:
    text = _funnel()
    save(folder, "Bert", text, text, {"tokenizer_class": "FunnelTokenizer"}, type_vocab_size=3)


def _funnel() -> str:
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(words())
    numbers = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    pair = "[CLS]:2 $A:0 [SEP]:0 $B:1 [SEP]:1"
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A:0 [SEP]:0", pair=pair, special_tokens=numbers
    )
    return str(made.to_str())


@shape("bert, no post-processor, class BertTokenizer", reference="auto")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), changed(words(), post_processor=None), {"tokenizer_class": "BertTokenizer"})


@shape(
    "bert, no post-processor, generic class",
    hf="puts no special token around a text",
    reference="auto BertTokenizer",
    note="puts no special tokens around the texts of a pair",
)
def _(folder: Path) -> None:
    text = changed(words(), post_processor=None)
    save(folder, "Bert", words(), text, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _template(single: str) -> str:
    """WordPiece with a template for single texts alone."""
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(words())
    numbers = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=numbers)
    return str(made.to_str())


@shape("bert, a template for single texts alone", reference="auto")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), _template("[CLS] $A [SEP]"), {"tokenizer_class": "BertTokenizer"})


@shape("bert, a template that puts nothing", reference="auto")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), _template("$A"), {"tokenizer_class": "BertTokenizer"})


APART = "do not stand before a text, between two and after"


@shape("bert, another template for single texts alone", bert=APART, hf=APART)
def _(folder: Path) -> None:
    save(folder, "Bert", words(), _template("[CLS] $A"), {"tokenizer_class": "BertTokenizer"})


@shape("bert, special tokens beyond the embeddings", bert="do not belong together", hf="do not belong together")
def _(folder: Path) -> None:
    whole = json.loads(words())
    whole["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [4000]
    text = json.dumps(whole)
    save(folder, "Bert", words(), text, {"tokenizer_class": "BertTokenizer"})


RANDOM = "cuts words at random (model.dropout)"


@shape("roberta, pieces with dropout", bert=RANDOM, hf=RANDOM)
def _(folder: Path) -> None:
    whole = json.loads(byte_pairs())
    whole["model"]["dropout"] = 0.01
    save(folder, "Roberta", byte_pairs(), json.dumps(whole), {"tokenizer_class": "RobertaTokenizer"})


EITHER = "added tokens '<User>' and '<USER>' are one when normalised"


@shape("bert, added tokens that lowercasing makes one", bert=EITHER, hf=EITHER)
def _(folder: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(words())
    made.add_tokens(["<User>", "<USER>"])
    save(folder, "Bert", made.to_str(), made.to_str(), {"tokenizer_class": "BertTokenizer"})


@shape("bert, a vocab.txt with a token twice beside it")
def _(folder: Path) -> None:
    listing = [*listed(words())[:-1], listed(words())[10], listed(words())[-1]]
    whole = json.loads(words())
    whole["model"]["vocab"] = {token: number for number, token in enumerate(listing)}
    files = {"vocab.txt": "".join(f"{token}\n" for token in listing)}
    save(folder, "Bert", len(listing), json.dumps(whole), {"tokenizer_class": "BertTokenizer"}, files)


@shape("bert, vocab.txt of another model beside it", note="vocab.txt says ")
def _(folder: Path) -> None:
    files = {"vocab.txt": vocab_txt(words(lower=False))}
    save(folder, "Bert", words(), words(), {"tokenizer_class": "BertTokenizer"}, files)


@shape("bert, padding and truncation in tokenizer.json")
def _(folder: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(words())
    made.enable_padding(length=12)
    made.enable_truncation(max_length=6)
    save(folder, "Bert", words(), made.to_str(), {"tokenizer_class": "BertTokenizer"})


@shape("roberta, post-processor in a sequence")
def _(folder: Path) -> None:
    text = byte_pairs("sequence")
    save(folder, "Roberta", text, text, {"tokenizer_class": "RobertaTokenizer"}, type_vocab_size=1)


@shape("bert of sentence-transformers", at="0_Transformer")
def _(folder: Path) -> None:
    save(folder / "0_Transformer", "Bert", words(), words(), {"tokenizer_class": "BertTokenizer", **NAMED_WORDS})
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


# ---------------------------------------------------------------------------------------------------- weights, families


@shape("bert in bfloat16")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), words(), {"tokenizer_class": "BertTokenizer"}, dtype=torch.bfloat16)


@shape("bert in shards")
def _(folder: Path) -> None:
    save(folder, "Bert", words(), words(), {"tokenizer_class": "BertTokenizer"}, shards="20KB")


@shape("roberta")
def _(folder: Path) -> None:
    save(folder, "Roberta", byte_pairs(), byte_pairs(), {"tokenizer_class": "RobertaTokenizer"}, type_vocab_size=1)


@shape("xlm-roberta")
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "XLMRobertaTokenizer", **NAMED_XLMR}
    save(folder, "XLMRoberta", unigram(), unigram(), settings, type_vocab_size=1)


@shape("electra")
def _(folder: Path) -> None:
    save(folder, "Electra", words(), words(), {"tokenizer_class": "ElectraTokenizer"}, embedding_size=8)


@shape("distilbert")
def _(folder: Path) -> None:
    sizes: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    save(folder, "DistilBert", words(), words(), {"tokenizer_class": "DistilBertTokenizer"}, **sizes)


@shape("mpnet, other special tokens", bert=UNSUPPORTED, note="cls_token '<s>' (it puts '[CLS]' there)")
def _(folder: Path) -> None:
    text = words(("<s>", "<pad>", "</s>", "[UNK]", "<mask>", "[CLS]", "[SEP]"))
    named = {**NAMED_XLMR, "unk_token": "[UNK]"}
    save(folder, "MPNet", text, text, {"tokenizer_class": "MPNetTokenizer", "do_lower_case": True, **named})


@shape("mpnet, vocab.txt", bert=UNSUPPORTED, reference="auto")
def _(folder: Path) -> None:
    text = words(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), around=ROUND)
    settings = {"tokenizer_class": "MPNetTokenizer", **NAMED_XLMR, "unk_token": "[UNK]"}
    save(folder, "MPNet", text, None, settings, {"vocab.txt": vocab_txt(text)})


@shape("camembert", bert=UNSUPPORTED)
def _(folder: Path) -> None:
    settings = {"tokenizer_class": "CamembertTokenizer", **NAMED_XLMR}
    save(folder, "Camembert", unigram(), unigram(), settings, type_vocab_size=1, pad_token_id=1)


@shape("modernbert", bert=UNSUPPORTED)
def _(folder: Path) -> None:
    numbers: dict[str, Any] = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    numbers |= {"bos_token_id": 2, "eos_token_id": 3}
    save(folder, "ModernBert", words(), words(), {"tokenizer_class": "PreTrainedTokenizerFast"}, **numbers)


@shape("deberta-v2", bert=UNSUPPORTED)
def _(folder: Path) -> None:
    options: dict[str, Any] = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    options |= {
        "type_vocab_size": 0,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    }
    save(folder, "DebertaV2", words(), words(), {"tokenizer_class": "PreTrainedTokenizerFast"}, **options)


OTHER_FAMILIES: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 8},
    "BigBird": {"block_size": 16, "num_random_blocks": 2},
    "ConvBert": {},
    "Ernie": {},
    "FNet": {},
    "JinaEmbeddingsV3": {},
    "MegatronBert": {},
    "MobileBert": {},
    "NomicBert": {},
    "RemBert": {},
    "XLMRobertaXL": {},
}
ONE_LENGTH = "mixes padding into the vectors, so batches are computed one length at a time"
FAMILY_NOTES = {
    "BigBird": "attention_type is 'block_sparse', full attention is used",
    "ConvBert": ONE_LENGTH,
    "FNet": ONE_LENGTH,
}
for _family, _sizes in OTHER_FAMILIES.items():

    @shape(_family.lower(), bert=UNSUPPORTED, note=FAMILY_NOTES.get(_family, ""))
    def _(folder: Path, family: str = _family, sizes: dict[str, Any] = _sizes) -> None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED_WORDS}
        save(folder, family, words(), words(), settings, **sizes)


def names(parts: Iterable[str] = ()) -> list[str]:
    """The shapes, or those whose names hold one of `parts`."""
    chosen = tuple(parts)
    return [name for name in SHAPES if not chosen or any(part in name for part in chosen)]
