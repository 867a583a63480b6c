"""An export loaded as others load it: its tokenizer by tokenizers and AutoTokenizer, its encoder by AutoModel.

transformers need not be installed where the backbone does without it; then only what tokenizers makes of the export is
compared. Shapes: `N` sequences, `T` tokens of the longest, padding included, `D` hidden.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.errors import MachineError, MtmetaError
from mtmeta.core.export.check import TEXT
from mtmeta.core.wording import quote, safe

LEAST = 5  # major version of transformers
MOST_TOKENS = 300  # added tokens that texts are made with
TEXTS = (
    *("", " ", TEXT, TEXT.upper(), "  two  spaces\tand\na line \r\n", "it's 1,000.50, don't!? un-accustomed_ness"),
    *("caf\u00e9 CAFE\u0301 \u0130 \u00df", "\u6771\u4eac\u90fd\u306b \u4e2d\u6587 \ud55c\uad6d\uc5b4", "x" * 150),
    "\U0001f600\U0001f468\u200d\U0001f469 \u2028 \x85\xa0nbsp \ufb01 \u0e20\u0e32\u0e29\u0e32 \u0627\u0644\u0639",
)
LOCAL = {"trust_remote_code": False, "local_files_only": True}


def load_transformers() -> ModuleType | None:
    """Import transformers, silently; None where it is not installed, too old or cannot be imported."""
    try:
        if int(importlib.metadata.version("transformers").split(".")[0]) < LEAST:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("transformers")
            library.logging.set_verbosity_error()
            library.logging.disable_progress_bar()
    except Exception:  # whatever a broken installation raises
        return None
    return library


def load_peft() -> ModuleType | None:
    """Import peft, silently; None where it is not installed or cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("peft")
    except Exception:  # whatever a broken installation raises
        return None


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Raise whatever transformers, peft or tokenizers raise as a MachineError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MtmetaError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception
        raise _refusal(f"{doing} fails ({safe(' '.join(str(error).split()), 200)})") from error


def _refusal(what: str) -> MachineError:
    return MachineError("export", f"{what}; nothing was kept, use `mtmeta predict`")


def check_tokenizer(folder: Path, backbone: LoadedBackbone) -> bool:
    """Raise MachineError unless the tokenizer in a folder gives the run's ids; return whether AutoTokenizer was tried.

    Texts are of several scripts, and hold every token that the tokenizer looks for.
    """
    with _errors("tokenizer.json by tokenizers"):
        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        added = [token.content for token in fast.get_added_tokens_decoder().values()][:MOST_TOKENS]
        near = [backbone.tokenizer.prefix, backbone.tokenizer.middle, backbone.tokenizer.suffix]
        added += [token for ids in near for number in ids if (token := fast.id_to_token(number)) is not None]
    library = load_transformers()
    auto: Any = None
    if library is not None:
        with _errors("AutoTokenizer.from_pretrained"):
            auto = library.AutoTokenizer.from_pretrained(folder, **LOCAL)
            added += [str(token) for token in auto.all_special_tokens]
    texts = [*TEXTS, *(f"{token}one {token} two{token}.{token}" for token in dict.fromkeys(added))]
    wanted = backbone.tokenizer.encode(texts)
    with _errors("tokenizer.json by tokenizers"):
        found = [encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)]
    _compare("tokenizer.json", texts, wanted, found)
    if auto is not None:
        _check_auto(auto, texts, wanted, backbone)
    return auto is not None


def _check_auto(auto: Any, texts: Sequence[str], wanted: Sequence[list[int]], backbone: LoadedBackbone) -> None:
    """Compare AutoTokenizer's ids, without special tokens, with them, and of pairs with their token types."""
    prefix, middle, suffix = (list(getattr(backbone.tokenizer, name)) for name in ("prefix", "middle", "suffix"))
    pairs = list(zip(texts, [*texts[1:], texts[0]], strict=True))
    rows = list(zip(wanted, [*wanted[1:], wanted[0]], strict=True))
    with _errors("AutoTokenizer"):
        plain = auto(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        single = auto(list(texts), verbose=False)["input_ids"]
        both = auto([a for a, _ in pairs], [b for _, b in pairs], verbose=False)
    _compare("AutoTokenizer", texts, wanted, plain)
    _compare("AutoTokenizer", texts, [[*prefix, *ids, *suffix] for ids in wanted], single)
    shown = [" | ".join(pair) for pair in pairs]
    firsts = [[*prefix, *a, *middle] for a, _ in rows]
    seconds = [[*b, *suffix] for _, b in rows]
    _compare("AutoTokenizer", shown, [[*a, *b] for a, b in zip(firsts, seconds, strict=True)], both["input_ids"])
    if "token_type_ids" in both:
        types = [[0] * len(a) + [1] * len(b) for a, b in zip(firsts, seconds, strict=True)]
        _compare("AutoTokenizer", shown, types, both["token_type_ids"], "token types")


def _compare(
    who: str, texts: Sequence[str], wanted: Sequence[list[int]], found: Sequence[list[int]], what: str = "ids"
) -> None:
    for text, ours, theirs in zip(texts, wanted, found, strict=True):
        if list(ours) != list(theirs):
            message = f"{who} would give {quote(text)} other {what} than the run ({_ids(theirs)}, not {_ids(ours)})"
            raise _refusal(message)


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:12])) + (" ..." if len(ids) > 12 else "")


class LibraryEncoder(nn.Module):
    """AutoModel's encoder of a folder: ids, attention mask and segments [N, T] to hidden states [N, T, D]."""

    auto, result = "AutoModel", "last_hidden_state"

    def __init__(self, library: ModuleType, folder: Path) -> None:
        """Load it. Raises MachineError where a tensor is missing, left over or of another shape."""
        super().__init__()
        with _errors(f"{self.auto}.from_pretrained"), torch.random.fork_rng(devices=[]):
            names = library.AutoTokenizer.from_pretrained(folder, **LOCAL).model_input_names
            options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, **LOCAL}
            model, loading = getattr(library, self.auto).from_pretrained(folder, **options)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(map(str, loading[kind])):
                raise _refusal(f"{self.auto} finds {kind.replace('_', ' ')} in it, {quote(keys[0])} first")
        self.model = model.eval()
        self.typed = "token_type_ids" in names

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        given = {"token_type_ids": token_type_ids} if self.typed else {}
        with _errors(self.auto):
            result: Tensor = getattr(
                self.model(input_ids=input_ids, attention_mask=attention_mask, **given), self.result
            )
        return result


class LibraryClassifier(LibraryEncoder):
    """AutoModelForSequenceClassification of a folder: the same inputs to logits [N, K]."""

    auto, result = "AutoModelForSequenceClassification", "logits"


class LibraryTagger(LibraryEncoder):
    """AutoModelForTokenClassification of a folder: the same inputs to logits [N, T, C]."""

    auto, result = "AutoModelForTokenClassification", "logits"


class AdaptedEncoder(LibraryEncoder):
    """AutoModel's encoder of a folder, with the adapters that peft makes of another."""

    def __init__(
        self, library: ModuleType, peft: ModuleType, base: Path, folder: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Load both. Raises MachineError unless peft then has the very tensors, for it does not tell what it drops."""
        super().__init__(library, base)
        with _errors("PeftModel.from_pretrained"), torch.random.fork_rng(devices=[]):
            self.model = peft.PeftModel.from_pretrained(self.model, str(folder)).eval()
            found = peft.get_peft_model_state_dict(self.model, save_embedding_layers=False)
        for name in sorted(found.keys() | tensors.keys()):
            if name not in found or name not in tensors or not torch.equal(found[name], tensors[name]):
                raise _refusal(f"peft has not {quote(name)} as it was written")
