"""Small random folders of encoders other than BERT, in Hugging Face layout, and tokenizers for them.

The byte-level BPE is learned here from the sample data: nothing is downloaded.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from mtmeta.plugins.backbones.tokenizers.bytelevel import ByteLevel
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.sample.dataset import vocabulary
from tests.support.parity import randomise

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ODD = (
    "",
    " ",
    "   leading and   inner    spaces  ",
    "tab\tand\nline end\r\n\nmore",
    "it's they're WE'LL 1,000.50 don't!?",
    "caf\xe9 CAFE\u0301 \u4e2d\u6587 \U0001f600\U0001f468\u200d\U0001f469 \u2028 \x85\xa0nbsp",
    "</s> a text that says <s> and  <mask> and <pad>x",
    "x" * 300,
)
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 66,
}


def sentences(count: int = 300) -> list[str]:
    """Sentences of the sample data, and odd ones."""
    rows = [*Sst(train="sample").sample("dev"), *Para(train="sample").sample("dev")]
    found = [text for row in rows for text in (row.text, row.pair) if text]
    return [*found[:: max(1, len(found) // count)][:count], *ODD]


@functools.cache
def byte_level() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of a small byte-level BPE."""
    from tokenizers import ByteLevelBPETokenizer

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(sentences(), 700, min_frequency=2, show_progress=False, special_tokens=SPECIALS)
    model = json.loads(learned.to_str())["model"]
    return model["vocab"], tuple((a, b) for a, b in model["merges"])


def write_byte_level(folder: Path) -> None:
    """vocab.json and merges.txt."""
    numbers, merges = byte_level()
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")


def tokenizer_text(kind: str) -> str:
    """A tokenizer.json with BERT's or RoBERTa's special tokens and post-processor."""
    from tokenizers import Tokenizer, processors

    if kind == "bytes":
        text = ByteLevel.from_vocabulary(*byte_level(), "test").json()
        tokenizer = Tokenizer.from_str(text)
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer = Tokenizer.from_str(WordPiece.from_vocabulary(vocabulary()).json())
        sep, cls = (int(tokenizer.token_to_id(token) or 0) for token in ("[SEP]", "[CLS]"))
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    made: str = tokenizer.to_str()
    return made


def size_of(kind: str) -> int:
    return len(byte_level()[0]) if kind == "bytes" else len(vocabulary())


# of each family: its kind of tokenizer, transformers' configuration, and what it takes beside SIZES
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("words", "BertConfig", {}),
    "distilbert": ("words", "DistilBertConfig", {}),
    "electra": ("words", "ElectraConfig", {"embedding_size": 16}),
    "electra of one width": ("words", "ElectraConfig", {"embedding_size": 24}),
    "roberta": ("bytes", "RobertaConfig", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta, two types": ("bytes", "RobertaConfig", {}),
    "xlm-roberta": ("bytes", "XLMRobertaConfig", {"type_vocab_size": 1}),
    "modernbert": (
        "words",
        "ModernBertConfig",
        {"local_attention": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        | {"cls_token_id": 2, "sep_token_id": 3},
    ),
    "deberta-v2": (
        "words",
        "DebertaV2Config",
        {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
        | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    ),
    "mpnet": ("bytes", "MPNetConfig", {}),
}
NATIVE = ("bert", "distilbert", "electra", "electra of one width", "roberta", "roberta, two types", "xlm-roberta")
OTHER_PIECES = ("xlm-roberta", "deberta-v2", "mpnet")  # transformers expects another tokenizer of them


def write_family(hf: Any, family: str, folder: Path, *, heads: bool = False, **options: Any) -> Any:
    """Write a folder of the family, all its values random; returns transformers' bare model.

    With `heads` the file is that of a model with heads, its names prefixed.
    """
    kind, name, own = FAMILIES[family]
    config = getattr(hf, name)(**{**SIZES, **own, "vocab_size": size_of(kind), **options})
    torch.manual_seed(1)
    model = (hf.AutoModelForMaskedLM if heads else hf.AutoModel).from_config(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_text(kind), encoding="utf-8")
    if family in OTHER_PIECES:
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return getattr(model, model.base_model_prefix) if heads else model


# encoders of backbone `hf` alone, all with the tokenizer `words`; transformers' configuration, and what it takes
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "fnet": ("FNetConfig", {}),
    "funnel": ("FunnelConfig", {"block_sizes": [2, 2], "num_decoder_layers": 1, "d_model": 24, "n_head": 3}
               | {"d_head": 8, "d_inner": 40, "architectures": ["FunnelModel"]}),
    "yoso": ("YosoConfig", {"max_position_embeddings": 128}),
    "convbert": ("ConvBertConfig", {"embedding_size": 24, "num_attention_heads": 4}),
    "nystromformer": ("NystromformerConfig", {}),
    "mobilebert": ("MobileBertConfig", {"embedding_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24}),
    "bigbird": ("BigBirdConfig", {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 256}),
    "longformer": ("LongformerConfig", {"attention_window": [8, 8, 8], "max_position_embeddings": 140}
                   | {"pad_token_id": 0}),
    "roformer": ("RoFormerConfig", {"embedding_size": 24}),
    "albert": ("AlbertConfig", {"embedding_size": 16}),
    "xlnet": ("XLNetConfig", {"d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 40}),
    "megatron-bert": ("MegatronBertConfig", {}),
    "nomic-bert": ("NomicBertConfig", {"num_attention_heads": 4}),
    "rembert": ("RemBertConfig", {"input_embedding_size": 16}),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", {}),
    "xmod": ("XmodConfig", {"default_language": "en_XX"}),
    "luke": ("LukeConfig", {"entity_vocab_size": 10}),
    "esm": ("EsmConfig", {"mask_token_id": 4, "pad_token_id": 0}),
    "mra": ("MraConfig", {"block_per_row": 1}),
    "reformer": ("ReformerConfig", {"hidden_size": 24, "axial_pos_embds": False, "is_decoder": False}
                 | {"num_attention_heads": 2, "attention_head_size": 12, "max_position_embeddings": 256}),
}  # fmt: skip


def write_other(hf: Any, family: str, folder: Path, **options: Any) -> Any:
    """Write a folder of one of OTHERS, all its values random; returns transformers' model."""
    name, own = OTHERS[family]
    sized = {} if {"d_model", "axial_pos_embds"} & set(own) else {**SIZES, "num_hidden_layers": 3}
    config = getattr(hf, name)(**{**sized, **own, "vocab_size": size_of("words"), **options})
    torch.manual_seed(1)
    model = hf.AutoModel.from_config(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_text("words"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return model
