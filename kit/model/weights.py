"""Find the weights, check and hash them, or download them through the hubs' own clients.

No torch, but for a download: bad input is refused at once, and hashing can run beside the imports
of torch and transformers. A download arrives whole or not at all.
"""

import fcntl
import fnmatch
import hashlib
import json
import math
import os
import shutil
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kit.errors import KitError, one_line
from kit.options import DOWNLOADS
from kit.output import RunLog, publish
from kit.outside import LARGEST_JSON_BYTES, cannot_read, json_object, kind_of, read_json
from kit.records import Source

MODEL_NAME = "dinov3-vitb16-pretrain-lvd1689m"
ENVIRONMENT_VARIABLE = "DINOV3_WEIGHTS"
DEFAULT_FOLDERS = (Path("/opt/atomgit/weight") / MODEL_NAME, Path("weights") / MODEL_NAME)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CHUNK_BYTES = 16 << 20
AGAIN = "download it again"
RECEIPT = "download.json"  # beside the weights: which hub they came from, and their hash
FLOAT_TYPES = ("F32", "BF16", "F16", "F64")
INDEX_TYPES = ("I64", "I32", "BOOL")  # tables of positions, which some models keep beside weights
# What any vision model's sizes lie between; the 7B model has 40 layers of width 4096.
CONFIG_SIZES = {
    "hidden_size": (1, 65_536),
    "hidden_sizes": (1, 65_536),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 4_096),
    "num_register_tokens": (0, 65_536),
    "num_channels": (1, 1_024),
    "patch_size": (1, 4_096),
    "image_size": (1, 65_536),
    "depths": (1, 1_000),
}


@dataclass(frozen=True)
class Weights:
    """Weights that were found: `folder` is None for the random stand-in."""

    folder: Path | None
    source: Source

    def source_of(self, sha256: str) -> Source:
        """Return where weights with this hash come from; a receipt counts for the very files."""
        if self.source != "local" or self.folder is None:
            return self.source
        receipt = self.folder / RECEIPT
        if kind_of(receipt, "") != "file":
            return self.source
        found = read_json(receipt, "delete it")
        known = next((hub for hub in DOWNLOADS if hub == found.get("source")), None)
        return known if known is not None and found.get("sha256") == sha256 else self.source

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files in the order of their names; none for the stand-in."""
        return safetensors_files(self.folder) if self.folder else ()


def find(given: Path | None, root: Path) -> Weights:
    """Return the weights to use: given, else $DINOV3_WEIGHTS, else a default folder, else random.

    The relative default is read against `root`, the folder of the scripts. Raises KitError where a
    folder that was given is not there or is not a sound model folder.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    from_environment = Path(named) if named else None
    for folder, origin in ((given, "--weights"), (from_environment, f"${ENVIRONMENT_VARIABLE}")):
        if folder is not None:
            if kind_of(folder, origin) != "folder":
                raise KitError(
                    f"{origin} {folder} is not a folder: "
                    "give the folder that holds config.json and model.safetensors"
                )
            check_folder(folder)
            return Weights(folder, "local")
    for default in DEFAULT_FOLDERS:
        folder = root / default
        if kind_of(folder, "the weights in") == "folder":
            check_folder(folder)
            return Weights(folder, "local")
    return Weights(None, "random")


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """Return a folder's safetensors files, sorted by name; KitError where it may not be read."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise cannot_read(folder, "weights folder", error) from error
    return tuple(path for path in paths if path.suffix == ".safetensors" and path.name[0] != ".")


def check_folder(folder: Path) -> None:
    """Check that folder holds a readable config.json and whole safetensors files, else KitError."""
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
    config = folder / "config.json"
    if kind_of(config, "") == "missing":
        raise KitError(f"{config} is missing: download the weights folder again")
    check_config(read_json(config, AGAIN), config)
    index = folder / "model.safetensors.index.json"
    if kind_of(index, "") != "missing":
        weight_map = read_json(index, AGAIN).get("weight_map")
        if not isinstance(weight_map, dict):
            raise KitError(f"{index} has no weight_map: download it again")
        missing = {str(name) for name in weight_map.values()} - {file.name for file in files}
        if missing:
            raise KitError(f"{folder / min(missing)} is missing: download the weights again")
    for file in files:
        check_safetensors(file)


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Check the sizes in a configuration; KitError naming the first that no vision model has.

    transformers takes what stands there: a million layers are built for hours, a zero divides.
    """
    if config.get("quantization_config") is not None:
        raise KitError(f"{path} asks for quantized weights: give the folder of unquantized ones")
    for name, (least, most) in CONFIG_SIZES.items():
        if name not in config:
            continue
        values = config[name] if isinstance(config[name], list) else [config[name]]
        if not all(type(value) is int and least <= value <= most for value in values):
            raise KitError(
                f"{path}: {name} is {str(config[name])[:60]}, "
                f"not a whole number from {least} to {most}: download it again"
            )
    theta = config.get("rope_theta", 1.0)
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 0 < theta < math.inf:
        raise KitError(f"{path}: rope_theta is {theta}, not a positive number: download it again")
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and width % heads:
        raise KitError(
            f"{path}: hidden_size {width} is not a multiple of num_attention_heads {heads}: "
            "download it again"
        )


def check_safetensors(path: Path) -> None:
    """Check a safetensors file's header against its size; no tensor is read.

    Raises KitError where the header is damaged, bytes are missing or left over, or a tensor is of
    a type that no float weights have.
    """
    from safetensors import SafetensorError, safe_open  # the report does without

    if kind_of(path, "") != "file":
        raise KitError(f"{path} is not a plain file: download the weights again")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            types = {name: file.get_slice(name).get_dtype() for name in names}
    except OSError as error:
        raise cannot_read(path, "", error) from error
    except SafetensorError as error:
        words = one_line(error)
        raise KitError(f"{path} has a damaged safetensors header ({words}): {AGAIN}") from error
    for name, dtype in types.items():
        is_weight = name.endswith((".weight", ".bias"))
        if dtype not in FLOAT_TYPES and (is_weight or dtype not in INDEX_TYPES):
            raise KitError(
                f"{path} holds {name[:80]} as {dtype}, which is no type of float weights "
                f"({', '.join(FLOAT_TYPES)}): give the folder of unquantized weights"
            )


def sha256_of_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the one file, or of the lines `sha256sum` prints for several."""
    digests = [sha256_of_file(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, the interpreter free meanwhile; KitError if unreadable."""
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


REPOSITORY = f"facebook/{MODEL_NAME}"
PATTERNS = ["*.json", "*.safetensors", "LICENSE*", "README.md"]
BOOKKEEPING = (".cache", "._____temp", ".msc", ".mv", ".mdl")  # the clients' own
HUB_TIMEOUT_S = 30.0
REFUSALS = ("gated", "401", "403", "license", "licence", "unauthorized", "forbidden")


@dataclass(frozen=True)
class Hub:
    """A hub and how it is dealt with."""

    source: Literal["modelscope", "huggingface"]  # as records name it
    package: str  # that holds its client
    login: str  # what a refused user types
    download: Callable[[Path], None]  # into a folder, by the client, which resumes what is there
    published: Callable[[], Mapping[str, str | None]]  # each weights file's SHA-256, by its name


def fetch(hub: str, given: Path | None, root: Path, log: RunLog) -> Weights:
    """Return the weights of DINOv3 ViT-B/16, downloaded from a hub where they are not there yet.

    Into --weights, else weights/ in `root`. The files arrive in a folder beside it, are checked,
    and only then take its place; a download that was interrupted goes on where it stopped. Of
    several processes, such as torchrun's ranks, one downloads and the others wait for it. Raises
    KitError, with the hub's own message where it refuses or the connection fails.
    """
    folder = given or root / DEFAULT_FOLDERS[-1]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # given back however the process ends
            return fetch_locked(HUBS[hub], folder, log)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KitError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; "
            "free the space or the permission, or choose another --weights"
        ) from error


def fetch_locked(hub: Hub, folder: Path, log: RunLog) -> Weights:
    """Do fetch's work while no other process does."""
    if folder.is_dir() and safetensors_files(folder):
        check_folder(folder)
        log.info(f"Weights are there already: {folder}")
        return Weights(folder, "local")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise KitError(f"--weights {folder} is in the way of the download: give an empty folder")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    log.info(f"Downloading {REPOSITORY} from {hub.source} into {folder}")
    download_all(hub, partial, log)
    check_folder(partial)
    for leftover in BOOKKEEPING:
        path = partial / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    leave_receipt(partial, hub.source, sha256_of_files(safetensors_files(partial)))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return Weights(folder, hub.source)


def leave_receipt(folder: Path, source: Source, sha256: str) -> None:
    """Keep beside the weights which hub published the very files; KitError if not writable."""
    content = {"source": source, "sha256": sha256}
    publish({folder / RECEIPT: f"{json.dumps(content, indent=2)}\n".encode()})


def identify(name: str, found: Weights, log: RunLog) -> Weights:
    """Return weights as a hub's own, where it publishes the SHA-256 of each file; none is fetched.

    Warns where that cannot be kept beside the weights. Raises KitError where a file is another one,
    or the hub does not say.
    """
    hub = HUBS[name]
    if found.folder is None:
        raise KitError(f"--identify {name} needs weights: give their folder by --weights")
    try:
        published = hub.published()
    except Exception as error:  # as in download_all
        raise KitError(failure(hub, error, "--identify")) from error
    for file in found.files:
        sha256, theirs = sha256_of_file(file), published.get(file.name)
        if sha256 != theirs:
            known = f"publishes {theirs}" if theirs else "publishes no such file"
            raise KitError(
                f"{file} has the SHA-256 {sha256}, {name} {known} in {REPOSITORY}: these are other "
                "weights; leave --identify out, or fetch the published ones with --download"
            )
    log.info(f"Weights are those that {name} publishes as {REPOSITORY}")
    try:
        leave_receipt(found.folder, hub.source, sha256_of_files(found.files))
    except KitError as error:
        log.warning(f"Not kept beside the weights: {error}")
    return Weights(found.folder, hub.source)


def download_all(hub: Hub, partial: Path, log: RunLog) -> None:
    """Run the hub's client, again where the connection broke after it had brought something."""
    while True:
        before = bytes_in(partial)
        try:
            hub.download(partial)
        except KitError:
            raise
        except Exception as error:  # each client has its own errors, and their texts are the help
            if is_refusal(error) or bytes_in(partial) <= before:
                raise KitError(failure(hub, error, "--download")) from error
            log.info(f"The connection broke ({one_line(error)}): resuming")
        else:
            return


def bytes_in(folder: Path) -> int:
    """Return how many bytes lie in a folder, finished or not."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def from_modelscope(folder: Path) -> None:
    """Download into folder through modelscope's client, which resumes and checks each SHA-256.

    The client imports torch, which must not load torch_npu: that fails where CANN is not loaded,
    and npu_patch, which comes after the download, imports it where it can work.
    """
    name = "TORCH_DEVICE_BACKEND_AUTOLOAD"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        from modelscope import snapshot_download
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
    snapshot_download(REPOSITORY, local_dir=str(folder), allow_patterns=PATTERNS)


def from_huggingface(folder: Path) -> None:
    """Download into folder through huggingface_hub's client, and check each file's hash.

    The client's own snapshot_download compares sizes only, and its newest versions begin a file
    anew in each process; so each file is fetched here by the client's http_get, from where an
    earlier process stopped. A KitError for a file of another content, which is deleted.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    info = HfApi().model_info(REPOSITORY, files_metadata=True)
    for listed in info.siblings or ():
        name, path = listed.rfilename, folder / listed.rfilename
        if not any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS) or "/" in name:
            continue
        expected, found = listed.blob_id, git_blob_id
        if listed.lfs is not None:
            expected, found = listed.lfs.sha256, sha256_of_file
        if path.is_file():
            if found(path) == expected:
                continue
            path.unlink()  # of an earlier commit
        unfinished = folder / f"{name}.unfinished"
        with unfinished.open("ab") as file:
            url = hf_hub_url(REPOSITORY, name, revision=info.sha)
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=listed.size,
                displayed_filename=name,
            )
        if expected and found(unfinished) != expected:
            unfinished.unlink()
            raise KitError(
                f"{name} from huggingface does not have the hash {expected} that the hub lists "
                "for it: run the same command again to fetch it anew"
            )
        unfinished.rename(path)


def published_by_modelscope() -> dict[str, str | None]:
    """Return the SHA-256 of each file that ModelScope lists, by its name.

    By the hub's own interface: from one release of its client to the next, get_model_files gives
    the hashes or leaves them out. An unwelcome answer is an OSError, ValueError, LookupError or
    TypeError.
    """
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    hub = domain if "://" in domain else f"https://{domain}"
    url = f"{hub}/api/v1/models/{REPOSITORY}/repo/files?Revision=master&Recursive=true"
    with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_S) as answer:
        content = answer.read(LARGEST_JSON_BYTES)
    listed = json_object(content, "the hub's list of files", "try again")["Data"]["Files"]
    return {str(file["Path"]): file.get("Sha256") for file in listed}


def published_by_huggingface() -> dict[str, str | None]:
    """Return the SHA-256 of each large file that Hugging Face lists, by its name."""
    from huggingface_hub import HfApi

    listed = HfApi().model_info(REPOSITORY, files_metadata=True).siblings or ()
    return {file.rfilename: file.lfs.sha256 if file.lfs else None for file in listed}


def git_blob_id(path: Path) -> str:
    """Return what git names a file's content by, as the hub lists small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


HUBS = {
    "modelscope": Hub(
        "modelscope",
        "modelscope",
        "modelscope login --token TOKEN",
        from_modelscope,
        published_by_modelscope,
    ),
    "huggingface": Hub(
        "huggingface",
        "huggingface_hub",
        "hf auth login, or set HF_TOKEN",
        from_huggingface,
        published_by_huggingface,
    ),
}


def is_refusal(error: Exception) -> bool:
    """Return whether the hub answered that it will not."""
    if isinstance(error, ImportError):
        return True
    words = one_line(error).lower()
    return any(sign in words for sign in REFUSALS)


def failure(hub: Hub, error: Exception, option: str) -> str:
    """Return what failed, in the hub's words, and what to do about it."""
    words = one_line(error)
    if isinstance(error, ImportError):
        return f"{option} {hub.source} needs its client ({words}): pip install {hub.package}"
    if is_refusal(error):
        return (
            f"{hub.source} refuses {REPOSITORY} ({words}): accept its licence on the model's "
            f"page, then log in ({hub.login}) and run the same command again"
        )
    again = "run the same command again" + (" to resume it" if option == "--download" else "")
    return f"{option.strip('-')} from {hub.source} failed ({words}): {again}"
