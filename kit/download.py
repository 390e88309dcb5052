"""Fetch the weights through the hubs' own clients, whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

from kit import weights
from kit.errors import KitError
from kit.output import RunLog
from kit.weights import MODEL_NAME, Weights

REPOSITORY = f"facebook/{MODEL_NAME}"
PATTERNS = ["*.json", "*.safetensors", "LICENSE*", "README.md"]


def fetch(hub: str, given: Path | None, root: Path, log: RunLog) -> Weights:
    """Return the weights of DINOv3 ViT-B/16, downloaded from a hub where they are not there yet.

    The files arrive in a folder beside the final one, are checked there, and only then take its
    place; a download that was interrupted goes on where it stopped.

    Args:
        hub: modelscope or huggingface.
        given: the final folder, from --weights; None for weights/ beside the scripts.
        root: folder of the scripts.
        log: says what happens.

    Raises:
        KitError: with the hub's own message where it refuses or the connection fails.
    """
    folder = given or root / weights.DEFAULT_FOLDERS[-1]
    if folder.is_dir() and weights.safetensors_files(folder):
        weights.check_folder(folder)
        log.info(f"Weights are there already: {folder}")
        return Weights(folder, "local")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise KitError(f"--weights {folder} is in the way of the download: give an empty folder")
    partial = folder.with_name(f"{folder.name}.partial")
    log.info(f"Downloading {REPOSITORY} from {hub} into {folder}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        CLIENTS[hub](partial)
    except Exception as error:  # each client has its own errors, and their texts are the help
        raise KitError(download_failure(hub, error)) from error
    weights.check_folder(partial)
    if folder.exists():
        folder.rmdir()
    for leftover in (".cache", "._____temp", ".msc", ".mv"):  # the clients' own bookkeeping
        path = partial / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    partial.rename(folder)
    return Weights(folder, "modelscope" if hub == "modelscope" else "huggingface")


def from_modelscope(folder: Path) -> None:
    """Download into folder through modelscope's client, which checks and resumes."""
    from modelscope import snapshot_download

    snapshot_download(REPOSITORY, local_dir=str(folder), allow_patterns=PATTERNS)


def from_huggingface(folder: Path) -> None:
    """Download into folder through huggingface_hub's client, which checks and resumes."""
    from huggingface_hub import snapshot_download

    snapshot_download(REPOSITORY, local_dir=folder, allow_patterns=PATTERNS)


CLIENTS: dict[str, Callable[[Path], None]] = {
    "modelscope": from_modelscope,
    "huggingface": from_huggingface,
}


def download_failure(hub: str, error: Exception) -> str:
    """Return what failed, in the hub's words, and what to do about it."""
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ImportError):
        return f"--download {hub} needs its client ({words}): pip install {hub_package(hub)}"
    if any(sign in words.lower() for sign in ("gated", "401", "403", "license", "licence")):
        return (
            f"{hub} refuses {REPOSITORY} ({words}): accept its licence on the model's page, "
            "then log in with the hub's own command"
        )
    return f"download from {hub} failed ({words}): run the same command again to resume it"


def hub_package(hub: str) -> str:
    """Return the name of the package that holds a hub's client."""
    return "modelscope" if hub == "modelscope" else "huggingface_hub"
