"""Find the weights, look them over before anything heavy is imported, and hash them.

Standard library only, so that bad input is answered at once and hashing can run beside the
imports of torch and transformers.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.arguments import path_from_environment
from kit.errors import KitError
from kit.records import Source

MODEL_NAME = "dinov3-vitb16-pretrain-lvd1689m"
ENVIRONMENT_VARIABLE = "DINOV3_WEIGHTS"
DEFAULT_FOLDERS = (Path("/opt/atomgit/weight") / MODEL_NAME, Path("weights") / MODEL_NAME)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CHUNK_BYTES = 16 << 20
LARGEST_HEADER_BYTES = 100 << 20  # safetensors' own limit


@dataclass(frozen=True)
class Weights:
    """Weights that were found: `folder` is None for the random stand-in."""

    folder: Path | None
    source: Source

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files in the order of their names; none for the stand-in."""
        return safetensors_files(self.folder) if self.folder else ()


def find(given: Path | None, root: Path) -> Weights:
    """Return the weights to use: given, else $DINOV3_WEIGHTS, else a default folder, else random.

    Args:
        given: the folder from --weights, None where there was none.
        root: folder of the scripts, against which the relative default is read.

    Raises:
        KitError: where a folder that was given is not there or is not a sound model folder.
    """
    from_environment = path_from_environment(ENVIRONMENT_VARIABLE)
    for folder, origin in ((given, "--weights"), (from_environment, f"${ENVIRONMENT_VARIABLE}")):
        if folder is not None:
            if not folder.is_dir():
                raise KitError(
                    f"{origin} {folder} is not a folder: "
                    "give the folder that holds config.json and model.safetensors"
                )
            check_folder(folder)
            return Weights(folder, "local")
    for default in DEFAULT_FOLDERS:
        folder = root / default
        if folder.is_dir():
            check_folder(folder)
            return Weights(folder, "local")
    return Weights(None, "random")


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """Return the folder's safetensors files, sorted by name."""
    return tuple(sorted(folder.glob("*.safetensors")))


def check_folder(folder: Path) -> None:
    """Check that folder holds a readable config.json and whole safetensors files.

    Raises:
        KitError: naming the file and the mend.
    """
    files = safetensors_files(folder)
    if not files:
        if any(any(folder.glob(pattern)) for pattern in PICKLES):
            raise KitError(
                f"weights folder {folder} holds pickled weights only, which can run code when "
                "they are read: convert them to model.safetensors"
            )
        raise KitError(
            f"weights folder {folder} holds no *.safetensors file: "
            "download it again, for example with --download modelscope"
        )
    read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        check_shards(index, files)
    for file in files:
        check_safetensors(file)


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in path.

    Raises:
        KitError: where path is missing, unreadable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KitError(f"{path} is missing: download the weights folder again") from error
    except (OSError, ValueError) as error:
        raise KitError(f"{path} is not readable JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise KitError(f"{path} does not hold a JSON object: download it again")
    return content


def check_shards(index: Path, files: Sequence[Path]) -> None:
    """Check that every shard that the index names is there.

    Raises:
        KitError: naming the first shard that is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise KitError(f"{index} has no weight_map: download it again")
    present = {file.name for file in files}
    missing = sorted({str(name) for name in weight_map.values()} - present)
    if missing:
        raise KitError(f"{index.parent / missing[0]} is missing: download the weights again")


def check_safetensors(path: Path) -> None:
    """Check a safetensors file's header against its size; no tensor is read.

    The format: 8 bytes with the header's length n (little-endian), n bytes of JSON, then the
    tensors' bytes, each at the `data_offsets` that the header gives.

    Raises:
        KitError: where the header is damaged or bytes are missing or left over.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
            raise KitError(f"{path} has a damaged safetensors header: download it again")
        try:
            header = json.loads(file.read(length))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
            raise KitError(f"{path} has a damaged safetensors header: download it again") from error
    expected = 8 + length + end
    if size != expected:
        raise KitError(
            f"{path} is {size} bytes where its header says {expected}: download it again"
        )


def sha256_of_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the one file, or of the lines `sha256sum` prints for several.

    Raises:
        KitError: where a file cannot be read.
    """
    digests = [sha256_of_file(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; the interpreter is free while it is computed.

    Raises:
        KitError: where the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()
