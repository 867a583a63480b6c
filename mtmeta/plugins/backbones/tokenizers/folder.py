"""The tokenizer of a model's folder: its tokenizer.json as it stands, or one that its vocabulary makes.

Both backbones ask here, so that they give equal ids on every folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file
from mtmeta.plugins.backbones.tokenizers.added import MAX_BYTES, SETTINGS, read_settings
from mtmeta.plugins.backbones.tokenizers.bytelevel import ByteLevel, byte_level_json
from mtmeta.plugins.backbones.tokenizers.contradictions import contradictions
from mtmeta.plugins.backbones.tokenizers.fast import FastTokenizer, puts_around, read_vocabulary
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece, word_piece_json

WHOLE = "tokenizer.json"
PARTS = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", SETTINGS)
# classes of transformers whose tokens a vocab.txt decides as BERT's authors read it, or vocab.json as RoBERTa's
WORD_PIECE = tuple(
    f"{name}Tokenizer"
    for name in ("Bert", "DistilBert", "Electra", "ConvBert", "MobileBert", "Lxmert", "SqueezeBert", "LayoutLM")
)
BYTE_LEVEL = tuple(f"{name}Tokenizer" for name in ("Roberta", "Longformer", "Bart", "LED"))
# others that transformers has by the tokenizers library, as `hf` needs them
BY_TRANSFORMERS = tuple(
    f"{name}Tokenizer"
    for name in ("MPNet", "XLMRoberta", "Camembert", "Albert", "Herbert", "Deberta", "DebertaV2", "BigBird", "RemBert")
)
# tokenizer_class where no file names one; of other model types transformers knows
OF_MODEL_TYPE = {"bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "electra": "ElectraTokenizer"} | {
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


FAMILIES: dict[str, type[FastTokenizer]] = dict.fromkeys(WORD_PIECE, WordPiece)
FAMILIES |= dict.fromkeys((*BYTE_LEVEL, "XLMRobertaTokenizer"), ByteLevel)
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # of any tokenizer.json: they put no special tokens of their own


class TokenizerFolder:
    """The tokenizer's files of a folder. Raises WeightsError for files that cannot be read."""

    def __init__(self, folder: Path, model_type: str, *others: Path, family: type[FastTokenizer] | None = None) -> None:
        """Find the files in `folder`, or in `others` around it.

        Whoever loads the text knows the special tokens of `family` by name.
        """
        places = [folder, *others]
        wholes = [place for place in places if (place / WHOLE).exists()]
        partial = [place for place in places if any((place / name).exists() for name in PARTS)]
        self.folder = (wholes or partial or places)[0]
        """Where the files lie."""
        self.is_whole = bool(wholes)
        """Whether there is a tokenizer.json."""
        self._settings = read_settings(self.folder)
        named = self._settings.get("tokenizer_class") or _config(folder).get("tokenizer_class")
        self.kind = str(named or OF_MODEL_TYPE.get(model_type, "")).removesuffix("Fast")
        """The class of transformers that the folder names, without `Fast`, or that of its model type, or nothing."""
        self._remote, self._family = self._remote_code(), family

    @property
    def is_ours(self) -> bool:
        """Whether `text` needs no other library."""
        return self.is_whole or (not self._remote and self.kind in (*WORD_PIECE, *BYTE_LEVEL))

    def text(self) -> str:
        """Return the text of the tokenizer.json that holds here. Raises WeightsError."""
        if not self.is_ours:
            raise mtmeta.WeightsError(*self._refusal())
        if self.is_whole:
            text = read_vocabulary(self.folder / WHOLE)
        else:
            text = word_piece_json(self.folder) if self.kind in WORD_PIECE else byte_level_json(self.folder)
        family = FAMILIES.get(self.kind)
        return text if family in (None, self._family) else family.put_around(text, str(self.folder / WHOLE))

    def notes(self) -> tuple[str, ...]:
        """Return what a user should know of it, a line each."""
        if not self.is_whole:
            return ()
        text = read_vocabulary(self.folder / WHOLE)
        lines = list(contradictions(self.folder, text, self._settings))
        if self.kind in GENERIC and self._family is not None and not puts_around(text, str(self.folder / WHOLE)):
            begin, _, end = map(" ".join, self._family.around or ())
            lines.append(
                f"{self.folder / WHOLE}: puts no special tokens around a text; {begin} and {end} are put there"
            )
        if self._remote:
            lines.append(f"{self.folder / SETTINGS}: 'auto_map' names code, which is never run; tokenizer.json holds")
        return tuple(lines)

    def _refusal(self) -> tuple[str, str]:
        """Return place and message for a folder whose tokenizer is not one of ours."""
        place, kind = str(self.folder / SETTINGS), mtmeta.quote(self.kind)
        fix = "save its tokenizer.json beside it"
        if self._remote:
            return place, f"'auto_map' asks for the tokenizer's own code, which is never run; {fix}"
        if not self.kind:
            return str(self.folder), f"has neither tokenizer.json nor a known tokenizer_class; {fix}"
        ours = f"only {', '.join((*WORD_PIECE[:3], BYTE_LEVEL[0]))} are read without a tokenizer.json"
        if self.kind in BY_TRANSFORMERS:
            return place, f"tokenizer_class {kind} is not read here ({ours}); use backbone hf, or {fix}"
        return place, f"tokenizer_class {kind} is not read ({ours}), nor by backbone hf; {fix}"

    def _remote_code(self) -> bool:
        """Return whether the folder names a tokenizer class of its own."""
        code = self._settings.get("auto_map")
        return isinstance(code, list) or (isinstance(code, dict) and "AutoTokenizer" in code)


def _config(folder: Path) -> dict[str, Any]:
    """Read config.json, where it is; what it says of the model is for others to check."""
    return json_file(folder / "config.json", MAX_BYTES)
