"""CPU references on the disk, found by content: weights, image, preprocessing, software."""

import hashlib
import json
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kit import output
from kit.errors import KitError
from kit.model.model import Features, sha256_of_tensors
from kit.output import RunLog

FORMAT = 1  # of the files; another one is computed again
TENSORS = ("pooler_output", "last_hidden_state")


class ReferenceCache:
    """Keeps one file for each image. A file that is damaged is as good as none.

    Attributes:
        hits: how many references were found.
    """

    def __init__(self, folder: Path | None, about: dict[str, str], log: RunLog) -> None:
        """Keep references in `folder`; None keeps none.

        Args:
            folder: made when the first reference is written.
            about: everything but the image that the reference depends on.
            log: warned once where writing fails.
        """
        self.folder = folder
        versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
        self.about = json.dumps({"format": FORMAT, **versions, **about}, sort_keys=True)
        self.log = log
        self.hits = 0

    def path_of(self, sha256: str) -> Path | None:
        """Return the file of an image's reference; None without a folder."""
        if self.folder is None:
            return None
        key = hashlib.sha256(f"{self.about}\n{sha256}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, sha256: str) -> Features | None:
        """Return an image's reference, None where there is none or its file is damaged."""
        path = self.path_of(sha256)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in TENSORS}
                digest = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        if digest != sha256_of_tensors(tensors.items()):
            return None
        self.hits += 1
        return Features(**tensors)

    def write(self, sha256: str, reference: Features) -> None:
        """Keep an image's reference; where the disk does not take it, stop keeping any."""
        path = self.path_of(sha256)
        if path is None:
            return
        tensors = {name: getattr(reference, name).clone() for name in TENSORS}  # they share memory
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            output.publish({path: save(tensors, {"sha256": sha256_of_tensors(tensors.items())})})
        except (OSError, KitError) as error:
            self.folder = None
            self.log.warning(f"CPU references are no longer kept on the disk: {error}")
