"""A folder by transformers: its tokenizer as the text of a tokenizer.json, its model with all values accounted for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import mtmeta
from mtmeta.plugins.backbones.checkpoint.config import MAX_LAYERS, MAX_PARAMETERS
from mtmeta.plugins.backbones.checkpoint.tensors import PICKLE, and_more, check_header, dimensions
from mtmeta.plugins.backbones.checkpoint.untrusted import check_regular, json_object
from mtmeta.plugins.backbones.encoder.repacked import Repacked
from mtmeta.plugins.backbones.tokenizers.by_class import text_by_class
from mtmeta.plugins.backbones.tokenizers.fast import AnyTokenizer
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder

LEAST = 5  # major version of transformers
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LOCAL = {"trust_remote_code": False, "local_files_only": True}
NO_DROPOUT = ("classif", "cls", "summary", "pooler", "qa", "path", "layerdrop")  # of heads, or of another kind


def load_transformers() -> ModuleType:
    """Import transformers, silently. Raises MachineError if it is not there, too old, or broken."""
    fix = "pip install 'mtmeta[hf]'"
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise mtmeta.MachineError("backbone hf", f"needs transformers, which is not installed; {fix}") from None
    if version.split(".")[0].isdecimal() and int(version.split(".")[0]) < LEAST:
        raise mtmeta.MachineError("backbone hf", f"needs transformers >= {LEAST}, found {mtmeta.safe(version)}; {fix}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("transformers")
            library.logging.set_verbosity_error()
            library.logging.disable_progress_bar()
    except Exception as error:
        raise mtmeta.MachineError("backbone hf", f"transformers cannot be imported ({_line(error)}); {fix}") from error
    return library


def _line(error: BaseException) -> str:
    """Return the first two lines of an error: transformers often says in the second one why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return mtmeta.safe(" ".join(lines[:2])[:300] if lines else type(error).__name__)


class Source:
    """A folder in Hugging Face layout, or of a run. Raises WeightsError for whatever is wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        """What the user should know of how the folder was read."""
        json_object(folder / "config.json")  # its own checks: a file, of sane size, that asks for no code
        self.library = load_transformers()
        self._config = self._checked()

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Raise errors of transformers, which may be any, as WeightsErrors of one line; warnings are left out."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (mtmeta.MtmetaError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            raise mtmeta.WeightsError(str(self.folder), f"transformers cannot {action} ({_line(error)})") from error

    # -- tokenizer

    def tokenizer(self) -> str:
        """Return the text of the tokenizer.json that holds for the folder."""
        files = TokenizerFolder(self.folder, self._config.model_type)
        if files.is_ours:
            self.notes += files.notes()
            return files.text()
        files.check()
        with self._errors("load the tokenizer"):
            return text_by_class(self.library, files.folder)

    # -- model

    def _checked(self) -> Any:
        """Read the configuration. Raises WeightsError if the model is unknown, no encoder, or absurdly large."""
        with self._errors("read config.json"):
            config = self.library.AutoConfig.from_pretrained(self.folder, **LOCAL)
            kind = self.library.MODEL_MAPPING.get(type(config), None)
        place = str(self.folder / "config.json")
        if kind is None:
            raise mtmeta.WeightsError(place, f"transformers has no AutoModel for {type(config).__name__}")
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
            raise mtmeta.WeightsError(place, "describes a decoder; an encoder is needed")
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise mtmeta.WeightsError(place, f"asks for {layers} layers (limit {MAX_LAYERS})")
        if hasattr(config, "reference_compile"):  # of ModernBERT: a compiler, for which nobody asked
            config.reference_compile = False
        with self._errors("make the model"), torch.device("meta"):
            size = sum(parameter.numel() for parameter in self._model(config).parameters())
        if size > MAX_PARAMETERS:
            message = f"asks for {size / 1e9:.4g} billion parameters (limit {MAX_PARAMETERS / 1e9:g} billion)"
            raise mtmeta.WeightsError(place, message)
        return config

    def set_dropout(self, dropout: float) -> None:
        """Set every dropout of the encoder. Raises RecipeError if it has none."""
        names = [name for name, value in self._config.to_dict().items() if _is_dropout(name, value)]
        if not names:
            raise mtmeta.RecipeError("backbone.dropout", f"{self.folder}'s config.json has no dropout; leave it out")
        for name in names:
            setattr(self._config, name, dropout)

    def _options(self, config: Any) -> dict[str, Any]:
        """Return the options of a model: no pooler where it can be without, for only hidden states are used."""
        kind = self.library.MODEL_MAPPING[type(config)]
        poolable = inspect.isclass(kind) and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        return {"dtype": torch.float32} | ({"add_pooling_layer": False} if poolable else {})

    def _model(self, config: Any) -> nn.Module:
        model: nn.Module = self.library.AutoModel.from_config(config, trust_remote_code=False, **self._options(config))
        return model

    def random(self, seed: int, tokenizer: str) -> tuple[nn.Module, str]:
        """Make the model with transformers' own initialisation, a function of `seed`, and name its values."""
        with self._errors("make the model"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"hf {seed}".encode()).digest()[:7], "big"))
            model = self._model(self._config)
        text = f"{(self.folder / 'config.json').read_text(encoding='utf-8')} {tokenizer}"
        shape = hashlib.sha256(text.encode()).hexdigest()
        return model, f"random values, shape {shape}, seed {seed}"

    def pretrained(self) -> tuple[nn.Module, str]:
        """Load the model with the folder's values, none of which may be missing, and their SHA-256."""
        place, identity = self._weights()
        config = self._config
        with self._errors("load the weights"), torch.random.fork_rng(devices=[]):
            lenient = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are not: see below
            options = {"config": config, "use_safetensors": True, **LOCAL, **lenient, **self._options(config)}
            model: nn.Module
            model, loading = self.library.AutoModel.from_pretrained(self.folder, **options)
        other = sorted(map(tuple, loading["mismatched_keys"]))  # name, shape in the file, shape in the model
        if other:
            name, has, needs = other[0]
            message = f"tensor {mtmeta.quote(name)} is {dimensions(has)}, config.json needs {dimensions(needs)}"
            raise mtmeta.WeightsError(str(place), f"{message}{and_more(other)}")
        missing = sorted(map(str, loading["missing_keys"]))
        if missing:
            message = f"tensor {mtmeta.quote(missing[0])} is missing, config.json asks for it{and_more(missing)}"
            raise mtmeta.WeightsError(str(place), message)
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise mtmeta.WeightsError(str(place), f"'{name}' holds non-finite values; fetch the file again")
        return model, f"sha256:{identity}"

    def _weights(self) -> tuple[Path, str]:
        """Find the file of weights, or the index of several, and the SHA-256 of them all."""
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        if not single.exists() and not index.exists():
            if others := sorted(path.name for path in self.folder.glob("*.bin")):
                raise mtmeta.WeightsError(str(self.folder / others[0]), PICKLE)
        if single.exists() or not index.exists():
            return single, _sha256(single)
        named = json_object(index).get("weight_map")
        shards = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
        if not shards or any(Path(name).name != name or not name.endswith(".safetensors") for name in shards):
            raise mtmeta.WeightsError(str(index), "names no files of this folder; fetch it again")
        hashes = "".join(f"{name} {_sha256(self.folder / name)}\n" for name in shards)
        return index, hashlib.sha256(hashes.encode()).hexdigest()

    # -- both

    def assembled(
        self, model: nn.Module, vocabulary: str, max_length: int, files: Mapping[str, bytes], identity: str
    ) -> mtmeta.LoadedBackbone:
        """Put model and tokenizer together.

        Raises WeightsError, or RecipeError, if they do not fit each other or `max_length`.
        """
        place = str(self.folder)
        tokenizer = AnyTokenizer.from_json(vocabulary, f"{place}/tokenizer.json")
        with self._errors("run the model"):
            rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        if tokenizer.size > rows:
            message = f"has {tokenizer.size} entries, embeddings have {rows}; they do not belong together"
            raise mtmeta.WeightsError(f"{place}: tokenizer", message)
        positions = _positions(model)
        if positions is not None and max_length > positions:
            message = f"max_length {max_length} exceeds {place}'s {positions} positions; lower it"
            raise mtmeta.RecipeError("backbone.max_length", message)
        probe = [*tokenizer.prefix, *tokenizer.encode(["probe"])[0], *tokenizer.suffix]
        with self._errors("run the model"), torch.inference_mode():
            encoder = Repacked(model.eval(), typed=self._typed(model, tokenizer))
            encoder.check(probe)
        packages, notes = ("transformers",), tuple(self.notes)
        return mtmeta.LoadedBackbone(encoder, tokenizer, max_length, files, identity, packages=packages, notes=notes)

    def _typed(self, model: nn.Module, tokenizer: AnyTokenizer) -> bool:
        """Return whether the second text of a pair has a token type of its own, as core numbers them."""
        types = getattr(model.config, "type_vocab_size", 0)
        takes = "token_type_ids" in inspect.signature(model.forward).parameters
        return takes and isinstance(types, int) and types > 1 and tokenizer.typed


def _is_dropout(name: str, value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and "drop" in name and not any(word in name for word in NO_DROPOUT)


def _positions(model: nn.Module) -> int | None:
    """Return the tokens of the longest sequence; None where nothing bounds it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # where there is a padding index, as in RoBERTa, positions count from the one after it
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    bound = getattr(model.config, "max_position_embeddings", None)
    return bound if isinstance(bound, int) and bound > 0 else None


def _sha256(path: Path) -> str:
    """Hash a safetensors file whose header is in order (SHA-256)."""
    check_regular(path)
    with open(path, "rb") as file:
        check_header(str(path), file)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
