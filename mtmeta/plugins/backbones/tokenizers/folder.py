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
# classes of transformers that are Python code, not the tokenizers library's, or call some
PYTHON = tuple(f"{name}Tokenizer" for name in ("BertJapanese", "Bertweet", "Phobert", "Tapas", "RoFormer", "RoCBert"))
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
        named, self._named_in = self._settings.get("tokenizer_class"), self.folder / SETTINGS
        if not named:  # transformers asks config.json, too
            named, self._named_in = _config(folder).get("tokenizer_class"), folder / "config.json"
        self._named = str(named or OF_MODEL_TYPE.get(model_type, ""))
        self.kind = self._named.removesuffix("Fast")
        """The class of transformers that the folder names, without `Fast`, or that of its model type, or nothing."""
        code = self._settings.get("auto_map")
        self._remote = isinstance(code, list) or (isinstance(code, dict) and "AutoTokenizer" in code)
        self._family = family

    @property
    def is_ours(self) -> bool:
        """Whether `text` needs no other library."""
        return self.is_whole or (not self._remote and self.kind in (*WORD_PIECE, *BYTE_LEVEL))

    def text(self) -> str:
        """Return the text of the tokenizer.json that holds here. Raises WeightsError."""
        self.check()
        if not self.is_ours:
            kind = mtmeta.quote(self._named) if self._named else "of its model_type"
            message = f"tokenizer_class {kind} is read by backbone hf alone where there is no tokenizer.json"
            raise mtmeta.WeightsError(str(self._named_in), f"{message}; use that, or save its tokenizer.json beside it")
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
            what = "puts no special tokens around the texts of a pair"
            lines.append(f"{self.folder / WHOLE}: {what}; {begin} and {end} are put there")
        if self._remote:
            lines.append(f"{self.folder / SETTINGS}: 'auto_map' names code, which is never run; tokenizer.json holds")
        return tuple(lines)

    def check(self) -> None:
        """Raise WeightsError where no backbone has such a tokenizer."""
        if self.is_whole:
            return
        fix, kind = "save a tokenizer.json beside it", mtmeta.quote(self._named)
        if self._remote:
            message = "'auto_map' asks for the tokenizer's own code, which is never run"
            raise mtmeta.WeightsError(str(self.folder / SETTINGS), f"{message}; {fix}")
        if self.kind in PYTHON:
            message = f"tokenizer_class {kind} cuts texts by Python code, which no backbone runs"
            raise mtmeta.WeightsError(str(self._named_in), f"{message}; {fix}")
        if self.kind in GENERIC:
            message = f"tokenizer_class {kind} is that of a tokenizer.json, which is not there"
            raise mtmeta.WeightsError(str(self._named_in), f"{message}; {fix}")


def _config(folder: Path) -> dict[str, Any]:
    """Read config.json, where it is; what it says of the model is for others to check."""
    return json_file(folder / "config.json", MAX_BYTES)
