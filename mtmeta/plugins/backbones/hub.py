"""Weights named by a hub id, `owner/name@revision`, through huggingface_hub and its cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import mtmeta

__all__ = ["fetch"]

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES += ["vocab.txt", "vocab.json", "merges.txt"]  # of tokenizers without a tokenizer.json
PINNED = re.compile("[0-9a-f]{40}")


def fetch(weights: str, files: Sequence[str] = FILES) -> Path:
    """The folder of a hub id in the local cache, fetched if needed; only the few safe file kinds are asked for."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = weights.partition("@")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not the user's business
    try:
        if files is FILES and PINNED.fullmatch(revision) and (cached := _cached(name, revision)):
            return cached
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except HFValidationError as error:
        what = "is neither a folder nor a hub id; give a folder in Hugging Face layout, a hub id or `embedded`"
        raise mtmeta.WeightsError(mtmeta.safe(weights), what) from error
    except LocalEntryNotFoundError as error:
        what = "is not in the local cache and the hub cannot be reached; fetch it while online or give a folder"
        raise mtmeta.MachineError(f"hub: {mtmeta.quote(name)}", what) from error
    except GatedRepoError as error:
        raise mtmeta.MachineError(f"hub: {mtmeta.quote(name)}", "needs a token; set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise mtmeta.MachineError(f"hub: {mtmeta.quote(name)}", f"has no revision {mtmeta.quote(revision)}") from error
    except RepositoryNotFoundError as error:
        what = "not found, or private; check the name or set HF_TOKEN"
        raise mtmeta.MachineError(f"hub: {mtmeta.quote(name)}", what) from error
    except Exception as error:  # the library's HTTP client, and with it its exceptions, changes between releases
        text = mtmeta.safe(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise mtmeta.MachineError(f"hub: {mtmeta.quote(name)}", f"cannot be fetched ({text})") from error


def _cached(name: str, revision: str) -> Path | None:
    """What the cache holds of a pinned revision, which cannot have changed, so that no network is needed."""
    from huggingface_hub import try_to_load_from_cache

    config, tensors = (try_to_load_from_cache(name, file, revision=revision) for file in FILES[:2])
    return Path(config).parent if isinstance(config, str) and isinstance(tensors, str) else None
