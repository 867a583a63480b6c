"""A folder by transformers: its tokenizer as the text of a tokenizer.json, its model with all values accounted for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import mtmeta
from mtmeta.plugins.backbones.checkpoint.config import MAX_LAYERS, MAX_PARAMETERS
from mtmeta.plugins.backbones.checkpoint.settings import read_settings
from mtmeta.plugins.backbones.checkpoint.shards import FLOATS, SPARE, Entry, Weights, and_more, dimensions, read_weights
from mtmeta.plugins.backbones.checkpoint.tensors import not_a_float, refuse_foreign
from mtmeta.plugins.backbones.encoder.repacked import Mates, Repacked
from mtmeta.plugins.backbones.tokenizers.by_class import text_by_class
from mtmeta.plugins.backbones.tokenizers.fast import AnyTokenizer
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder

LEAST = 5  # major version of transformers
LONGEST_PROBE = 128  # tokens
APART = "batches.json"  # in a run, where its encoder's batches hold one length; what random weights show may be less
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


@contextmanager
def _no_kernels() -> Iterator[None]:
    """Keep models from fetching compiled code from the hub while they are made, as YOSO and MRA do on a GPU."""
    module: Any = importlib.import_module("transformers.integrations.hub_kernels")  # by them at the last moment

    def refuse(*arguments: object, **options: object) -> None:
        raise ImportError("kernels of the hub are never fetched")

    fetch, module.get_kernel = getattr(module, "get_kernel", None), refuse
    try:
        yield
    finally:
        module.get_kernel = fetch


def _line(error: BaseException) -> str:
    """Return the first two lines of an error: transformers often says in the second one why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return mtmeta.safe(" ".join(lines[:2])[:300] if lines else type(error).__name__)


class Source:
    """A folder in Hugging Face layout, or of a run. Raises WeightsError for whatever is wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_settings(folder)  # read once, and without keys that choose files, code or kernels
        self.notes: list[str] = []
        """What the user should know of how the folder was read."""
        self.library = load_transformers()
        self._config, self._kind = self._checked()

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

    def _checked(self) -> tuple[Any, Any]:
        """Return the configuration and the model's class. Raises WeightsError for what is no encoder of sane size."""
        place, values = str(self.folder / "config.json"), self.settings.values
        kind = values.get("model_type")
        native = isinstance(kind, str) and kind in self.library.CONFIG_MAPPING
        if self.settings.code and not native:
            fix = "transformers itself has no such model_type" if kind else "name a model_type"
            raise mtmeta.WeightsError(place, f"'auto_map' asks for remote code, which is never run; {fix}")
        self.notes += self.settings.notes
        with self._errors("read config.json"):
            if not native:
                raise ValueError(f"model_type {mtmeta.quote(kind)} is unknown to it")
            config = self.library.CONFIG_MAPPING[kind].from_dict(values)
            known = self.library.MODEL_MAPPING.get(type(config), None)
        if known is None:
            raise mtmeta.WeightsError(place, f"transformers has no AutoModel for {type(config).__name__}")
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
            raise mtmeta.WeightsError(place, "describes a decoder; an encoder is needed")
        if kind == "mra" or (kind == "yoso" and not config.use_expectation):  # without them MRA's attention gives zeros
            message = (
                f"model_type '{kind}' computes by kernels of the hub, which are never fetched; use another encoder"
            )
            raise mtmeta.WeightsError(place, message)
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise mtmeta.WeightsError(place, f"asks for {layers} layers (limit {MAX_LAYERS})")
        if hasattr(config, "reference_compile"):  # of ModernBERT: a compiler, for which nobody asked
            config.reference_compile = False
        if getattr(config, "attention_type", "") == "block_sparse":
            # of BigBird, which leaves it for good at the first short text: what comes after it would be another model's
            config.attention_type = "original_full"
            self.notes.append(f"{place}: attention_type is 'block_sparse', full attention is used")
        with self._errors("make the model"), torch.device("meta"):
            model = self._model(config)
        self._size = sum(parameter.numel() for parameter in model.parameters())
        self._types = {name: values.dtype for name, values in model.state_dict().items()}
        if self._size > MAX_PARAMETERS:
            message = f"asks for {self._size / 1e9:.4g} billion parameters (limit {MAX_PARAMETERS / 1e9:g} billion)"
            raise mtmeta.WeightsError(place, message)
        return config, type(model)

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
        options = {"trust_remote_code": False, **self._options(config)}
        with _no_kernels():
            model: nn.Module = self.library.AutoModel.from_config(config, **options)
        return model

    def random(self, seed: int, tokenizer: str) -> tuple[nn.Module, str]:
        """Make the model with transformers' own initialisation, a function of `seed`, and name its values."""
        with self._errors("make the model"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"hf {seed}".encode()).digest()[:7], "big"))
            model = self._model(self._config)
        text = f"{self.settings.data.decode('utf-8')} {tokenizer}"
        shape = hashlib.sha256(text.encode()).hexdigest()
        return model, f"random values, shape {shape}, seed {seed}"

    def pretrained(self) -> tuple[nn.Module, str]:
        """Load the model with the folder's values, none of which may be missing, and their SHA-256.

        transformers is given tensors, made of the bytes that were hashed, and no folder: it opens no file.
        """
        integers = {name.rpartition(".")[2] for name, dtype in self._types.items() if not dtype.is_floating_point}

        def keep(entry: Entry) -> bool:
            return entry.dtype in FLOATS or (entry.dtype == "int64" and entry.name.rpartition(".")[2] in integers)

        needed = 4 * self._size
        weights = read_weights(self.folder, keep, most=4 * needed + SPARE, needed=needed)
        self._refuse_doubles(weights)
        # a tensor of another type is no number where the model uses it, and nothing where it does not
        others = [name for name in weights.entries if name not in weights.tensors]
        absent = {name: torch.tensor(torch.nan).expand(weights.entries[name].shape) for name in others}
        config, place = self._config, str(weights.place)
        if not isinstance(config, self._kind.config_class):  # of several models, of which the text's is taken
            config = config.get_text_config()
        with self._errors("load the weights"), torch.random.fork_rng(devices=[]), _no_kernels():
            lenient = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are not: see below
            options = {"config": config, "state_dict": weights.tensors | absent, **lenient, **self._options(config)}
            model: nn.Module
            model, loading = self._kind.from_pretrained(None, **options)
        del options, absent
        other = sorted(map(tuple, loading["mismatched_keys"]))  # name, shape in the file, shape in the model
        if other:
            name, has, needs = other[0]
            message = f"tensor {mtmeta.quote(name)} is {dimensions(has)}, config.json needs {dimensions(needs)}"
            raise mtmeta.WeightsError(place, f"{message}{and_more(other)}")
        missing = sorted(map(str, loading["missing_keys"]))
        if missing:
            message = f"tensor {mtmeta.quote(missing[0])} is missing, config.json asks for it{and_more(missing)}"
            raise mtmeta.WeightsError(place, message)
        if self.settings.code:
            refuse_foreign(weights, sorted(map(str, loading["unexpected_keys"])), MAX_LAYERS)
        parameters = dict(model.named_parameters())
        for name, values in model.state_dict().items():  # a buffer may be a mask of infinities
            bad = ~torch.isfinite(values) if name in parameters else torch.isnan(values)
            if bool(bad.any()):
                raise self._not_finite(weights, name, others)
        self.notes += weights.notes
        return model, f"sha256:{weights.identity}"

    def _refuse_doubles(self, weights: Weights) -> None:
        """Raise WeightsError for a tensor that is there under two names, of which transformers would take either."""
        prefix, seen = f"{getattr(self._kind, 'base_model_prefix', '')}.", dict[str, str]()
        for name in weights.entries:
            plain = name.removeprefix(prefix)
            for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
                plain = plain.removesuffix(old) + new if plain.endswith("LayerNorm" + old) else plain
            if (other := seen.setdefault(plain, name)) != name and plain in self._types:
                message = f"tensor {mtmeta.quote(other)} is there under another name too ({mtmeta.quote(name)})"
                raise mtmeta.WeightsError(str(weights.files[name]), message)

    @staticmethod
    def _not_finite(weights: Weights, name: str, others: Sequence[str]) -> mtmeta.WeightsError:
        """Return the refusal of the model's tensor `name`; `others` are those of the file that are no floats."""
        if alike := [other for other in others if f".{other}".endswith(f".{name}") or f".{name}".endswith(f".{other}")]:
            return not_a_float(weights, [alike[0], *(other for other in others if other != alike[0])])
        if others and all(bool(torch.isfinite(values).all()) for values in weights.tensors.values()):
            return not_a_float(weights, others)
        return mtmeta.WeightsError(str(weights.place), f"'{name}' holds non-finite values; fetch the file again")

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
        with self._errors("run the model"), torch.inference_mode():
            encoder = Repacked(model.eval(), typed=self._typed(model, tokenizer))
            encoder.check(tokenizer)
            mates = encoder.mates(tokenizer, min(max_length, LONGEST_PROBE), tokenizer.size)
        if mates in (Mates.RANDOM, Mates.MIXED):
            what = "gives one text another vector each time" if mates is Mates.RANDOM else "mixes the texts of a batch"
            message = f"{type(model).__name__} {what}; a run with it could not be repeated, use another encoder"
            raise mtmeta.WeightsError(place, message)
        if mates is Mates.PADDED or APART in files:
            encoder.one_length = True
            files = {**files, APART: b'{"one_length": true}\n'}
            text = "mixes padding into the vectors, so batches are computed one length at a time, which is slower"
            if (least := encoder.shortest) > len(tokenizer.prefix) + len(tokenizer.suffix):
                text += f"; texts of fewer than {least} tokens are padded to {least}"
            self.notes.append(f"{place}: {type(model).__name__} {text}")
        options: Any = {"packages": ("transformers",), "notes": tuple(self.notes)}
        return mtmeta.LoadedBackbone(encoder, tokenizer, max_length, files, identity, **options)

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
