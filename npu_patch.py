"""Run CUDA code on an Ascend NPU: ``import npu_patch`` before ``import torch``, nothing else.

On a host whose NPU can be used, importing this module remaps ``torch.cuda`` to ``torch.npu``. On
any other host it changes nothing, and makes ``import torch`` and ``import transformers`` safe. It
logs one line to the logger ``npu_patch`` that says which.

    npu_patch.status()            what it did on this host: a state, its cause, how to fix it
    npu_patch.apply()             apply it again
    npu_patch.restore()           undo it: every attribute is the very object again that it was
    with npu_patch.patched():     have it for a while
    with npu_patch.chips_gelu():  GELU as the chip has it, see below

    python3 -m npu_patch script.py ARGS...    run somebody's CUDA script unmodified
    python3 -m npu_patch -m module ARGS...    the same for a module
    python3 -m npu_patch [--json]             say what is wrong on this host, and what to install
    python3 -m npu_patch --bundle FILE.zip    pack that, records and logs for a bug report

This file needs the standard library and torch alone, and works when it is copied alone. It reads
from the top: these functions; the states of a host; the engine that changes attributes and changes
them back; then, subject by subject, what is put in place of torch's functions, each with the rows
that say where; last the command.
"""

# ruff: noqa: ANN401 - its wrappers pass on whatever the functions of torch take and return

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

if "restore" in globals():  # a reload: what the old code changed is put back, then changed anew
    globals()["restore"]()

OLDEST_TORCH = (2, 7)  # that was tried; an older one is tried all the same and warned of


def status() -> Status:
    """Return what this module did on this host."""
    return _state.status


def apply() -> Status:
    """Remap torch.cuda to torch.npu where an NPU can be used; say why not elsewhere.

    Applying twice is applying once. Where a change fails, everything is put back and the error is
    raised.
    """
    with _state.lock:
        if not _state.undo:
            _state.status = _patch_problem() or _do_all()
        return _state.status


def restore() -> Status:
    """Undo `apply`: every attribute is the very object again that it was before."""
    with _state.lock:
        if _state.undo:
            _undo_all()
            _state.status = Status("restored", "it was applied and has been undone")
        return _state.status


@contextlib.contextmanager
def patched() -> Iterator[Status]:
    """Apply the patch for a while. Where it was applied before, it stays so afterwards."""
    was_applied = _state.status.applied
    now = apply()
    try:
        yield now
    finally:
        if not was_applied:
            restore()


@contextlib.contextmanager
def chips_gelu() -> Iterator[None]:
    """Let GELU be the chip's own for a while, whatever form is asked for."""
    with _state.lock:
        replaced = _state.gelu is not None
        _leave_gelu_to_the_chip()
    try:
        yield
    finally:
        if replaced and _state.undo:  # not undone meanwhile
            _register_gelu()


def _apply_at_import() -> None:
    """Apply the patch and log the one line. The import does not fail for what is wrong here."""
    try:
        apply()
    except Exception as error:  # everything is put back, and the script runs as without the patch
        reason = f"a change to torch failed, all were undone ({type(error).__name__}: {error})"
        fix = "Run python3 -m npu_patch and report what it says."
        _state.status = Status("failed", reason, fix)
    level = logging.WARNING if _state.status.fix else logging.INFO
    logging.getLogger("npu_patch").log(level, _state.status.message)


# ---- The host: which state is it in? Nothing here imports torch_npu where that cannot work -----

State = Literal[
    "applied",
    "restored",
    "torch_absent",
    "torch_npu_absent",
    "cann_absent",
    "version_mismatch",
    "torch_npu_broken",
    "torch_npu_aborts",
    "no_device",
    "transfer_to_npu_active",
    "failed",
]
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
_TRIAL = "NPU_PATCH_IMPORT"  # what a trial of the import found, for child processes
_TRIAL_SECONDS = 300  # a cold host takes a minute
# Releases of torch whose CUDA build too was seen to start beside their torch_npu, without a GPU.
_CUDA_BUILD_STARTS = {"2.7.1", "2.8.0", "2.9.0", "2.10.0", "2.12.0"}
_LOAD_CANN = (
    "Install CANN or load it: source /usr/local/Ascend/cann/set_env.sh, "
    "before CANN 8.5 /usr/local/Ascend/ascend-toolkit/set_env.sh"
)
_FIND_DRIVER = (
    "Mount /usr/local/Ascend/driver into the container, and add its lib64/driver and lib64/common "
    "to LD_LIBRARY_PATH."
)
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
_FIND_NPU = f"Check npu-smi info, {_VISIBLE} and the rights on /dev/davinci*."


@dataclass(frozen=True)
class Status:
    """What this module did on this host.

    Attributes:
        state: one of the above.
        reason: its cause.
        fix: what to do about it, where something is wrong.
        gelu: what GELU on the NPU computes: "asked", the form that is asked for; or "chip", the
            tanh form whatever is asked for. Empty while the patch is not applied.
    """

    state: State
    reason: str
    fix: str = ""
    gelu: Literal["asked", "chip", ""] = ""

    @property
    def applied(self) -> bool:
        """Whether torch.cuda is remapped to torch.npu now."""
        return self.state == "applied"

    @property
    def message(self) -> str:
        """The one line that is logged."""
        if self.applied:
            line = "Applied NPU monkey-patch (torch.cuda -> torch.npu)"
            return f"{line}. {self.fix}" if self.fix else line
        return " ".join(filter(None, (f"NPU monkey-patch not applied: {self.reason}.", self.fix)))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> str:
    """Return a version's first three numbers: 2.9.0.post1+git -> 2.9.0, 2.12.0rc1 -> 2.12.0."""
    found = re.match(r"\d+(\.\d+){0,2}", version)
    return found.group() if found else ""


def _age_problem() -> str:
    """Say that torch is older than what this file was tried with, or nothing."""
    version = _version("torch")
    numbers = tuple(map(int, _release(version).split(".")[:2])) if version else OLDEST_TORCH
    oldest = ".".join(map(str, OLDEST_TORCH))
    too_old = numbers < OLDEST_TORCH
    return f"torch {version} is older than {oldest}, the oldest supported." if too_old else ""


def _pairing_problem() -> Status | None:
    ours, theirs = _version("torch-npu"), _version("torch")
    if not ours or not theirs or _release(ours) == _release(theirs):
        return None
    fix = f"Install the pair: pip install --no-deps 'torch-npu=={_release(theirs)}.*'"
    return Status("version_mismatch", f"torch-npu {ours} is not made for torch {theirs}", fix)


def _torch_build() -> str:
    """Return what torch is built for without importing it: "cpu", "cuda 13.0"; "" if unknown."""
    spec = importlib.util.find_spec("torch")
    try:
        text = Path((spec and spec.origin) or "", "..", "version.py").resolve().read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r"^(cuda|hip|xpu)\b[^=\n]*= *['\"](.+)['\"]", text, re.MULTILINE)
    return " ".join(found.groups()) if found else "cpu"


def _is_known_to_start() -> bool:
    """Whether importing torch_npu ends no process, as far as is known of this pair."""
    ours, theirs = _release(_version("torch-npu")), _release(_version("torch"))
    if not ours or ours != theirs:
        return False
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    gpu = not hidden and any(Path("/dev").glob("nvidia[0-9]*"))
    return _torch_build() == "cpu" or (ours in _CUDA_BUILD_STARTS and not gpu)


def _trial_key() -> str:
    """Return what the answer of a trial holds for: these libraries, this CANN, this driver."""
    files = [Path("/usr/local/Ascend/driver/version.info")]
    for package, names in (
        ("torch", ("version.py", "lib/libtorch_cpu.so", "lib/libtorch_cuda.so")),
        ("torch_npu", ("__init__.py", "lib/libtorch_npu.so")),
    ):
        spec = importlib.util.find_spec(package)
        files += [Path((spec and spec.origin) or "", "..", name).resolve() for name in names]
    parts = [f"{file} {file.stat().st_mtime_ns}" for file in files if file.is_file()]
    parts += [os.environ.get("LD_LIBRARY_PATH", ""), sys.version]
    parts += [str(Path(os.environ.get("ASCEND_HOME_PATH", "")).resolve())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _trial_files(key: str) -> list[Path]:
    """Return where an answer is remembered; the second serves where no home can be written to."""
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib raises where there is none
    folders = os.environ.get("XDG_CACHE_HOME") or home, tempfile.gettempdir()
    return [Path(folder, f"npu_patch-{os.getuid()}", key) for folder in folders]


def _recall_trial(key: str) -> str | None:
    """Return the last words of an import that died, "" of one that did not, None if unknown."""
    texts = [os.environ.get(_TRIAL, "")]
    for file in _trial_files(key):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append(file.read_text("utf-8"))
    answers = (text.partition(" ") for text in texts)
    return next((words for known, _, words in answers if known == key), None)


def _remember_trial(key: str, words: str) -> None:
    for file in _trial_files(key):
        with contextlib.suppress(OSError):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = file.with_name(f"{key}.{os.getpid()}")
            whole.write_text(f"{key} {words}", "utf-8")
            whole.replace(file)
            return


def _try_import(key: str) -> str | None:
    """Import torch_npu in a child process; return its last words, "" where it imports it.

    None is no answer: an exception depends on more than the key says, and ends no process.
    """
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
        f"sys.path[:] = {sys.path!r}; import torch_npu"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, _AUTOLOAD: "0", _TRIAL: f"{key} "},  # no trial in the trial
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    ended = done.returncode
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if ended == 1 and "Traceback (most recent call last):" in lines:
        return None
    if ended == 0:
        return ""
    said = [line for line in lines if line.startswith("what():")] or lines[-1:]
    how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
    return ": ".join([how, *(line.removeprefix("what():").strip()[:300] for line in said[:1])])


def _trial_problem() -> Status | None:
    """Where a pair is not known to start, let a child process import torch_npu before this one."""
    if "torch_npu" in sys.modules or _is_known_to_start():
        return None
    key = _trial_key()
    words = _recall_trial(key)
    if words is None:
        words = _try_import(key)
        if words is not None:
            _remember_trial(key, words)
    os.environ[_TRIAL] = f"{key} {words or ''}"
    if not words:
        return None
    ours, theirs, build = _version("torch-npu"), _version("torch"), _torch_build()
    pair = f"torch_npu {ours} beside torch {theirs} for {build or 'an unknown device'}"
    fix = "Run python3 -m npu_patch, which says what does not fit."
    if build not in {"", "cpu"}:
        wheel, index = f"torch=={_release(theirs)}+cpu", "https://download.pytorch.org/whl/cpu"
        fix = f"Install torch's CPU build: pip install '{wheel}' --index-url {index}"
    return Status("torch_npu_aborts", f"importing {pair} ends the process ({words})", fix)


def _import_problem() -> Status | None:
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever its C++ raises: this host cannot use it
        lines = (str(error).strip() or type(error).__name__).splitlines()
        coded = (line.strip() for line in lines if re.match(r"\s*E[A-Z0-9]\d{4}: ", line))
        cause = next(coded, lines[0])  # CANN's own line comes later
        if "cannot open shared object file" in cause:
            hal = "libascend_hal" in cause
            whose = "the driver's libraries" if hal else "CANN"
            reason = f"torch_npu does not find {whose} ({cause.partition(':')[0]})"
            return Status("cann_absent", reason, _FIND_DRIVER if hal else _LOAD_CANN)
        fix = "Run python3 -m npu_patch, which says what does not fit."
        return Status("torch_npu_broken", f"torch_npu cannot be imported ({cause})", fix)
    return None


def _host_problem() -> Status | None:
    """Import torch and torch_npu where that works; return None then, else the state of the host.

    Where it does not work, torch is kept from loading torch_npu by itself (in child processes too),
    and libraries that look for torch_npu find none. `restore` leaves that as it is.
    """
    if not importlib.util.find_spec("torch"):
        return Status("torch_absent", "torch is not installed", "Install it: pip install torch")
    if _state.hidden is not None:
        return _state.hidden
    if sys.modules.get("torch_npu", ...) is None or not importlib.util.find_spec("torch_npu"):
        return Status("torch_npu_absent", "torch_npu is not installed")
    before = os.environ.get(_AUTOLOAD)
    os.environ[_AUTOLOAD] = "0"
    problem = _pairing_problem() or _trial_problem() or _import_problem()
    if problem is None:
        _set_variable(_AUTOLOAD, before)
        return None
    importlib.import_module("torch")  # while the variable keeps it from importing torch_npu
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_npu"]:
        del sys.modules[name]
    # None makes find_spec say that there is no torch_npu; else transformers imports it and dies.
    sys.modules["torch_npu"] = None  # type: ignore[assignment]
    _state.hidden = problem
    return problem


def _patch_problem() -> Status | None:
    """Return None where the patch can be applied, else the state that says why not."""
    problem = _host_problem()
    if problem is not None:
        return problem
    if "torch_npu.contrib.transfer_to_npu" in sys.modules:
        reason = "torch_npu.contrib.transfer_to_npu is active and cannot be undone"
        return Status("transfer_to_npu_active", reason, "Import npu_patch instead of it.")
    if not torch.npu.is_available():
        visible = os.environ.get(_VISIBLE, "")
        numbers = [int(number) for number in re.findall(r"\d+", visible, re.ASCII)]
        if numbers != sorted(set(numbers)):
            reason = f"{_VISIBLE}={visible} hides every NPU"
            return Status("no_device", reason, "Its numbers must ascend, as in 0,1.")
        reason = "torch_npu and CANN are installed, but no NPU is available"
        return Status("no_device", reason, _FIND_NPU)
    return None


# ---- The engine: what changes an attribute, and changes it back --------------------------------


class Place(NamedTuple):
    """Where a change goes: the owner (a module or class), its dotted path and the name."""

    owner: Any
    where: str
    name: str


How = Callable[[Any, Place], Any]  # what was there, and where -> what is put in its place


class Row(NamedTuple):
    """A change: the owners, the names there (or what finds them), how, whether they are new."""

    where: str
    names: str | Callable[[str], str]
    how: How
    new: bool = False


class _State:
    """All that this module changes in itself while it works; it outlives a reload.

    Attributes:
        status: what was done on this host.
        undo: what puts back each change, the last change last; empty while nothing is applied.
        devices: every name of a CUDA device -> the NPU. Empty while nothing is applied, so that a
            wrapper to which somebody kept a reference does nothing then.
        kinds: the types of its keys.
        device_type: the C getter of torch.device.type.
        hidden: why torch_npu is hidden from libraries, or None.
        ranges: the open nvtx ranges of each thread, as handles of mstx.
        said: the warnings that were given, each once in a process.
        gelu: the library that holds the kernels of GELU while they take the place of the chip's.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.status = Status("restored", "nothing was asked of it yet")
        self.undo: list[Callable[[], Any]] = []
        self.devices: dict[Any, Any] = {}
        self.kinds: set[type] = set()
        self.device_type: Callable[[Any], str] = str
        self.hidden: Status | None = None
        self.ranges = threading.local()
        self.said: set[str] = set()
        self.gelu: Any = None


class _Torch:
    """torch, once `_host_problem` has imported it: this file must load where it cannot be."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torch"), name)


_state: _State = globals().get("_state") or _State()
_ABSENT: Any = object()
torch: Any = _Torch()


def _find(path: str) -> Any:
    """Return the module or class at a dotted path; a ModuleNotFoundError where there is none."""
    first, *others = path.split(".")
    owner, reached = importlib.import_module(first), first
    for name in others:
        reached = f"{reached}.{name}"
        found = getattr(owner, name, _ABSENT)
        owner = importlib.import_module(reached) if found is _ABSENT else found
    return owner


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, or delete it where the value is _ABSENT; of a C type too.

    A type of C takes no attributes by setattr. Its dictionary does, if the interpreter is told.
    """
    if isinstance(owner, type) and not owner.__flags__ & 1 << 9:  # Py_TPFLAGS_HEAPTYPE
        (attributes,) = gc.get_referents(owner.__dict__)
        attributes.pop(name) if value is _ABSENT else attributes.update({name: value})
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))
    elif value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _set_variable(name: str, value: str | None) -> None:
    """Set an environment variable, or delete it where the value is None."""
    os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _do(place: Place, how: How) -> None:
    """Replace one attribute, and note how to undo it; an inherited one is to be deleted."""
    before = vars(place.owner).get(place.name, _ABSENT)
    if isinstance(place.owner, type) and before is not _ABSENT:
        original = getattr(before, "__func__", before)  # a descriptor that is asked may warn
    else:
        original = getattr(place.owner, place.name, None)
    after = how(original, place)
    if after is original:
        return
    if (
        isinstance(after, types.FunctionType)
        and after.__module__ == __name__
        and original is not None
    ):
        # pickle, torch.fx and a reader find a wrapper of this file by the name of what it wraps.
        functools.update_wrapper(after, original)
        if not isinstance(place.owner, type):
            after.__module__, after.__qualname__ = place.where, place.name
    static = isinstance(before, staticmethod) or place.name == "__new__"
    _state.undo.append(functools.partial(_set, place.owner, place.name, before))
    _set(place.owner, place.name, staticmethod(after) if static else after)
    operator = torch.jit._builtins._find_builtin(original)
    if operator is not None:  # torch.jit knows its operators by the identity of torch's functions
        table = torch.jit._builtins._get_builtin_table()
        _state.undo.append(functools.partial(table.pop, id(after), None))
        table[id(after)] = operator


def _do_row(row: Row) -> None:
    for where in row.where.split():
        try:
            owner = _find(where)
        except ModuleNotFoundError:
            continue  # of another version of torch
        for name in (row.names if isinstance(row.names, str) else row.names(where)).split():
            if row.new or name in vars(owner) or hasattr(owner, name):
                _do(Place(owner, where, name), row.how)


def _do_all() -> Status:
    """Do every change, or none: an error at one undoes those before it and is raised."""
    other = vars(torch.cuda).get("_npu_patch")
    if other is not None:  # another copy of this module has applied it, and can undo it
        _state.undo.append(other)
        return other.__globals__["status"]()  # type: ignore[no-any-return]
    try:
        _name_devices()
        for row in TABLE:
            _do_row(row)
        gelu = _replace_gelu()
        _stop_compiling()
    except BaseException:
        _undo_all()
        raise
    return Status("applied", "torch_npu, CANN and an NPU are available", _age_problem(), gelu)


def _undo_all() -> None:
    while _state.undo:
        _state.undo.pop()()
    _state.devices.clear()


def _warn_once(text: str) -> None:
    if text not in _state.said:
        _state.said.add(text)
        logging.getLogger("npu_patch").warning(text)


# The words of a row's third column that many subjects use; each subject has its own below.

NAMED = sys.maxsize  # the position of an argument that comes by name alone

# Libraries that know the NPU. Told that CUDA is there, they take their CUDA path: a wrong back end,
# a wrong distributed type. They are told the truth, and everybody else sees CUDA.
NPU_AWARE = {"torch", "torch_npu", "transformers", "accelerate", "diffusers", "peft", "trl"}


def _asked_by_user() -> bool:
    """Return whether the caller's caller is outside the libraries that know the NPU."""
    name: str = sys._getframe(2).f_globals.get("__name__") or ""
    return name.partition(".")[0] not in NPU_AWARE


def _position(function: types.FunctionType, name: str) -> int | None:
    """Return the position of a Python function's parameter, NAMED, or None."""
    if name not in function.__code__.co_varnames and not hasattr(function, "__wrapped__"):
        return None
    parameters = inspect.signature(function).parameters
    if name not in parameters:
        return None
    named = parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    return NAMED if named else list(parameters).index(name)


def _argument(function: types.FunctionType, name: str) -> tuple[int, Any]:
    """Return the position of a parameter, NAMED where it has none, and its default."""
    index = _position(function, name)
    if index is None or index == NAMED:
        return NAMED, None
    return index, inspect.signature(function).parameters[name].default


def argument(change: Callable[[Any], Any], name: str, position: int | None = None) -> How:
    """Change one argument, or its default; the signature tells the position where none is given."""

    def how(original: Any, place: Place) -> Any:
        index, default = (position, None) if position is not None else _argument(original, name)
        has_cuda_default = change(default) is not default

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(args) > index:
                changed = change(args[index])
                if changed is not args[index]:
                    args = (*args[:index], changed, *args[index + 1 :])
            elif name in kwargs:
                kwargs[name] = change(kwargs[name])
            elif has_cuda_default:
                kwargs[name] = change(default)
            return original(*args, **kwargs)

        def typed(*args: Any, **kwargs: Any) -> Any:  # the same for a device type, and faster
            if len(args) > index and args[index] != "cuda":
                return original(*args, **kwargs)
            return wrapper(*args, **kwargs)

        return typed if change is npu_type else wrapper

    return how


def same(original: Any, place: Place) -> Any:
    """Take torch.npu's function or class of the same name, with CUDA's names for its arguments."""
    twin = _find(place.where.replace("torch.cuda", "torch_npu.npu", 1))
    npu = getattr(twin, place.name, None)
    if npu is None:
        return missing("this torch_npu has none")(original, place)
    if not isinstance(npu, types.FunctionType) or not isinstance(original, types.FunctionType):
        return npu
    theirs, own = inspect.signature(original).parameters, inspect.signature(npu).parameters
    pairs = zip(theirs, own, strict=False)  # the longer one takes the rest by its own names
    names = {cuda: ours for cuda, ours in pairs if cuda != ours}
    if not names:
        return npu

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return npu(*args, **{names.get(name, name): value for name, value in kwargs.items()})

    return wrapper


def npu(path: str) -> How:
    """Take what torch.npu has at this path."""

    def how(original: Any, place: Place) -> Any:
        try:
            return functools.reduce(getattr, path.split("."), torch.npu)
        except AttributeError:
            return missing("this torch_npu has none")(original, place)

    return how


def like(path: str) -> How:
    """Take what a module, patched by a row above, has under the same name."""
    return lambda original, place: getattr(_find(path), place.name)


def always(answer: Any) -> How:
    """Give one answer, whatever the arguments."""
    return lambda original, place: lambda *_, **__: answer


def for_users(how: How) -> How:
    """Let the user's code call the replacement, and libraries that know the NPU the original."""

    def chosen(original: Any, place: Place) -> Any:
        replacement = how(original, place)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _state.devices and _asked_by_user():
                return replacement(*args, **kwargs)
            return original(*args, **kwargs)

        return wrapper

    return chosen


def missing(instead: str) -> How:
    """Raise NotImplementedError and say what to do instead."""

    def how(original: Any, place: Place) -> Any:
        message = f"{place.where}.{place.name} has no counterpart on an Ascend NPU: {instead}."

        def wrapper(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(message)

        if isinstance(original, type):
            return type(original.__name__, (original,), {"__new__": wrapper})
        return wrapper

    return how


def left(reason: str) -> How:
    """Leave it as it is, for a reason."""
    assert reason
    return lambda original, place: original


class _Either(str):
    """A true word ("npu") that equals CUDA's word ("cuda") too, for comparisons in user's code."""

    __slots__ = ("cuda",)
    cuda: str

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == self.cuda

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, part: str) -> bool:  # type: ignore[override] # as str has it
        return str.__contains__(self, part) or part in self.cuda

    def startswith(self, *args: Any) -> bool:  # the same
        return str.startswith(self, *args) or self.cuda.startswith(*args)

    __hash__ = str.__hash__

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str.__str__(self),)


def _either(npu: str, cuda: str) -> _Either:
    word = _Either(npu)
    word.cuda = cuda
    return word


# ---- torch.device, and the other types whose objects name a device -----------------------------


def _name_devices() -> None:
    """Fill the table of CUDA devices; torch's device index is an int8."""
    original = type(torch.empty(0).device)
    _state.device_type = vars(original)["type"].__get__
    _state.kinds.update((str, original))
    for text in ["cuda", *(f"cuda:{index}" for index in range(128))]:
        here = original(text.replace("cuda", "npu"))
        _state.devices[text] = _state.devices[original(text)] = here


def npu_device(device: Any) -> Any:
    """Return the NPU for a name of a CUDA device, and anything else as it is."""
    return _state.devices.get(device, device) if type(device) in _state.kinds else device


def npu_type(device_type: Any) -> Any:
    """Return "npu" for "cuda", and any other device type as it is."""
    same = not isinstance(device_type, str) or device_type != "cuda" or not _state.devices
    return device_type if same else "npu"


def user_device_type(original: Any, place: Place) -> Any:
    """Let ``x.device.type == "cuda"`` hold in the user's code, where it also still is "npu".

    That comparison guards synchronization, autocast and pinned memory in countless programs; with
    the bare truth they would go the CPU's way without a word. Printing it tells the truth.
    """
    get, both = original.__get__, _either("npu", "cuda")

    def getter(self: Any) -> str:
        answer: str = get(self)
        return both if answer == "npu" and _state.devices and _asked_by_user() else answer

    return property(getter)


def stand_in(maker: Callable[[Any], Callable[..., Any]]) -> How:
    """Put a class there that stands in for a type of torch, whose objects `maker` makes.

    isinstance, issubclass, ==, hash and attributes answer as the type does, by its own C functions.
    """

    def how(original: Any, place: Place) -> Any:
        make = maker(original)
        kind: Any = type(original)
        replacement: Any = None

        def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass that somebody made of it makes its own objects.
            if cls is not replacement:
                return kind.__call__(cls, *args, **kwargs)
            return make(cls, *args, **kwargs) if args or kwargs else original()

        def answer(name: str) -> Any:
            method = getattr(kind, name)
            if final:
                return method.__get__(original)
            return lambda cls, *given: method(original if cls is replacement else cls, *given)

        final = not original.__flags__ & 1 << 10  # Py_TPFLAGS_BASETYPE
        methods = {name: answer(name) for name in ("__instancecheck__", "__eq__", "__hash__")}
        methods["__subclasscheck__"] = lambda cls, other: kind.__subclasscheck__(
            original if cls is replacement else cls, original if other is replacement else other
        )
        methods |= {
            "__call__": make if final else call,
            "__getattr__": lambda cls, name: getattr(original, name),
        }
        meta = type(f"_{place.name}Type", (kind,), methods)
        body = {"__module__": place.where, "__doc__": original.__doc__}
        replacement = meta(place.name, () if final else (original,), body)
        return replacement

    return how


def device_maker(original: Any) -> Callable[..., Any]:
    """Make torch.device: ("cuda:1"), ("cuda", 1), (type="cuda", index=1), (device=...), (1)."""
    get = _state.devices.get

    def make(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            npu = get(args[0])
            return original(args[0]) if npu is None else npu
        named = {
            key: npu_device(v) if key == "device" else npu_type(v) for key, v in kwargs.items()
        }
        return original(*map(npu_type, args), **named)

    return make


def object_maker(original: Any) -> Callable[..., Any]:
    """Make a torch.Generator, Stream or Event, which take a device first or by name."""

    def make(cls: Any, *args: Any, **kwargs: Any) -> Any:
        named = {key: npu_device(value) for key, value in kwargs.items()}
        return original(*map(npu_device, args), **named)

    return make


def scripted_device(original: Any, place: Place) -> Any:
    """Let torch.jit take as an annotation the type torch.device itself, beside its stand-in."""
    (real,) = (kind for kind in _state.kinds if kind is not str)

    def wrapper(annotation: Any, *args: Any, **kwargs: Any) -> Any:
        return original(torch.device if annotation is real else annotation, *args, **kwargs)

    return wrapper


DEVICES = (
    Row("torch.device", "type", user_device_type),
    Row("torch", "device", stand_in(device_maker)),
    Row("torch", "Generator Stream Event", stand_in(object_maker)),
    Row("torch.jit.annotations", "try_ann_to_type", scripted_device),
)


# ---- Functions that take a device, or a memory format ------------------------------------------


@functools.cache
def _constructors() -> frozenset[int]:
    """Return the identities of the constructors, which torch remembers: originals, not wrappers."""
    constructors = importlib.import_module("torch.utils._device")._device_constructors()
    return frozenset(map(id, constructors))


def _device_position(function: Any, name: str) -> int | None:
    """Return where a function takes its device: a position, NAMED, or None for nowhere.

    Operators say so in their schemas, Python functions in their signatures, and torch keeps a list
    of constructors for ``with torch.device(...)``.
    """
    if isinstance(function, types.FunctionType):
        return _position(function, "device")
    positions = [
        NAMED if argument_.kwarg_only else index
        for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}")
        for index, argument_ in enumerate(schema.arguments)
        if argument_.name == "device"
    ]
    if positions:
        return min(positions)
    return NAMED if id(function) in _constructors() else None


def device_takers(path: str) -> str:
    """Find the names in a module or class that take a device, in whatever torch is installed."""
    _constructors()
    owner, others = _find(path), (type, types.ModuleType, property)
    return " ".join(
        name
        for name in dir(owner)
        if not name.startswith("__")
        and callable(value := getattr(owner, name))
        and not isinstance(value, others)
        and _device_position(value, name) is not None
    )


def device(original: Any, place: Place) -> Any:
    """Change the device that a function takes. Written for speed: every torch.ones passes here."""
    position = _device_position(original, place.name)
    get, kinds = _state.devices.get, _state.kinds

    def by_name(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            npu = get(kwargs.get("device"))
            if npu is not None:
                kwargs["device"] = npu
            if "memory_format" in kwargs:
                return _with_format(original, args, kwargs)
        return original(*args, **kwargs)

    def by_position(*args: Any, **kwargs: Any) -> Any:
        if len(args) > index and type(args[index]) in kinds:  # else it is a dtype or a tensor
            npu = get(args[index])
            if npu is not None:
                args = (*args[:index], npu, *args[index + 1 :])
        return by_name(*args, **kwargs) if kwargs else original(*args, **kwargs)

    index = NAMED if position is None else position
    return by_name if index == NAMED else by_position


def _with_format(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call with a memory format. channels_last, which torch_npu refuses, is taken as contiguous.

    It is a hint for speed: what a program computes does not depend on it.
    """
    wanted = kwargs["memory_format"]
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        hint = wanted in {torch.channels_last, torch.channels_last_3d} and _state.devices
        if not hint or "ontiguous" not in str(error):
            raise
    _warn_once("On an NPU channels_last, which torch_npu does not have, is taken as contiguous.")
    result = function(*args, **{**kwargs, "memory_format": torch.contiguous_format})
    return result.contiguous(memory_format=wanted) if result.is_cpu else result


def with_format(original: Any, place: Place) -> Any:
    """Let a function that takes a memory format, and no device, take channels_last."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs and "memory_format" in kwargs:
            return _with_format(original, args, kwargs)
        return original(*args, **kwargs)

    return wrapper


def to_cuda(original: Any, place: Place) -> Any:
    """Tensor.cuda and Module.cuda: the same as .to with the device, given in any form or not."""
    move = place.owner.to

    def cuda(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not _state.devices:
            return original(self, device, *args, **kwargs)
        if args:  # Tensor.cuda(device, non_blocking)
            kwargs["non_blocking"] = args[0]
        index = f":{device}" if isinstance(device, int) else ""
        return move(
            self, npu_device(f"cuda{index}" if index or device is None else device), **kwargs
        )

    return cuda


def with_moves(original: Any, place: Place) -> Any:
    """Let a parameter that has no shape yet take the patched methods too."""
    return [*original, torch.Tensor.to, torch.Tensor.cuda]


def storage_cuda(original: Any, place: Place) -> Any:
    """Storage.cuda, as .npu."""

    def cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        return self.npu(npu_device(device), non_blocking)

    return cuda


def default_tensor_type(original: Any, place: Place) -> Any:
    """torch.set_default_tensor_type, which torch_npu's types do not serve: a dtype and a device."""

    def wrapper(t: Any) -> None:
        name = t if isinstance(t, str) else f"{t.__module__}.{t.__name__}"
        there = _state.devices and name.startswith(("torch.cuda.", "torch.npu."))
        if there or torch.get_default_device().type == "npu":
            torch.set_default_device("npu" if there else "cpu")
        original(f"torch.{name.rpartition('.')[2]}" if there else t)

    return wrapper


_CHECKPOINT = "torch.utils.checkpoint.DefaultDeviceType"
FUNCTIONS = (
    Row("torch torch.fft torch.nested torch.Tensor", device_takers, device),
    Row("torch.Tensor", "new_tensor", device),
    Row("torch.Tensor", "contiguous resize_as_ cpu npu float double half bfloat16", with_format),
    Row("torch.Tensor", "int long short char byte bool", with_format),
    Row("torch.Tensor", "cuda", to_cuda),
    Row("torch.nn.Module", "to", argument(npu_device, "device", 1)),
    Row("torch.nn.Module", "to_empty", device),
    Row("torch.nn.Module", "cuda", to_cuda),
    Row("torch.nn.parameter.UninitializedTensorMixin", "_allowed_methods", with_moves),
    Row("torch.UntypedStorage torch.TypedStorage", "cuda", storage_cuda),
    Row("torch.UntypedStorage", "__new__", argument(npu_device, "device", NAMED)),
    Row("torch", "set_default_tensor_type", default_tensor_type),
    Row(_CHECKPOINT, "set_device_type", argument(npu_type, "device")),
    Row("torch._C", "_dispatch_key_for_device", argument(npu_type, "device_type", 0)),
)


# ---- What a tensor says of itself --------------------------------------------------------------


def tensor_is_npu(original: Any, place: Place) -> Any:
    """Make Tensor.is_cuda true on the NPU, for users; most often asked of what is on the host."""
    get, device_type = original.__get__, _state.device_type

    def getter(self: Any) -> bool:
        if self.is_cpu:
            return False
        if device_type(self.device) == "npu" and _state.devices:
            return _asked_by_user()
        return bool(get(self))

    return property(getter, doc=original.__doc__)


def is_npu(original: Any, place: Place) -> Any:
    """Make is_cuda of a storage or a packed sequence true on the NPU, for users."""

    def getter(self: Any) -> bool:
        where = self.device if hasattr(self, "device") else self.data.device
        if _state.devices and _state.device_type(where) == "npu":
            return _asked_by_user()
        return bool(original.__get__(self))

    return property(getter, doc=original.__doc__)


def tensor_type(original: Any, place: Place) -> Any:
    """Tensor.type: takes "torch.cuda.HalfTensor", and its answer equals such a name too."""

    def wrapper(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            if _state.devices and isinstance(dtype, str) and dtype.startswith("torch.cuda."):
                dtype = dtype.replace("cuda", "npu", 1)
            if "memory_format" in kwargs:
                return _with_format(original, (self, dtype, *args), kwargs)
            return original(self, dtype, *args, **kwargs)
        answer = original(self)
        if "npu" in answer and _state.devices and _asked_by_user():
            return _either(answer, answer.replace("npu", "cuda", 1))
        return answer

    return wrapper


TENSORS = (
    Row("torch.Tensor", "is_cuda", tensor_is_npu),
    Row("torch.Tensor", "type", tensor_type),
    Row("torch.nn.utils.rnn.PackedSequence", "is_cuda", is_npu),
    Row("torch.UntypedStorage torch.TypedStorage", "is_cuda", is_npu),
)


# ---- Files, and other processes ----------------------------------------------------------------


def npu_text(location: Any) -> Any:
    """Return the NPU as text, as torch spells locations: "cuda:0" -> "npu:0"."""
    return str(npu_device(location)) if isinstance(location, str) else location


def npu_location(location: Any) -> Any:
    """Return torch.load's map_location, whose keys may meet files with "cuda:0" and "npu:0"."""
    if not isinstance(location, dict):
        return npu_device(location)
    return {**{npu_text(key): value for key, value in location.items()}, **location}


class _ImportHere:
    """Unpickled in a spawned process, it imports this module there before anything else."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        folder = str(Path(__file__).resolve().parent)
        return eval, (f"(__import__('sys').path.append({folder!r}), __import__('npu_patch'))",)


def spawned(original: Any, place: Place) -> Any:
    """Let processes that multiprocessing spawns have the patch, however this one came to it."""
    return lambda name: {**original(name), "npu_patch": _ImportHere()}


def unpickled(original: Any, place: Place) -> Any:
    """Unpickle a tensor to where it was; torch.load of older torch_npu takes it to the CPU."""
    load = torch.serialization._legacy_load
    return lambda b: load(io.BytesIO(b), None, pickle, encoding="utf-8")


FILES = (
    Row("torch.storage", "_load_from_bytes", unpickled),
    Row("torch torch.serialization", "load", argument(npu_location, "map_location")),
    Row("torch.serialization", "default_restore_location", argument(npu_text, "location")),
    Row("torch.jit", "load", argument(npu_device, "map_location")),
    Row("torch.utils.data.DataLoader", "__init__", argument(npu_text, "pin_memory_device")),
    Row("multiprocessing.spawn", "get_preparation_data", spawned),
)


# ---- Autocast and gradient scaling -------------------------------------------------------------


def autocast_state(original: Any, place: Place) -> Any:
    """torch.is_autocast_enabled: without a device type it means CUDA."""

    def is_autocast_enabled(device_type: str = "cuda") -> bool:
        return bool(original("npu" if device_type == "cuda" and _state.devices else device_type))

    return is_autocast_enabled


def autocast_switch(original: Any, place: Place) -> Any:
    """torch.set_autocast_enabled(enabled) and (device_type, enabled)."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _state.devices and len(args) + len(kwargs) == 1:
            return original("npu", *args, *kwargs.values())
        return original(*map(npu_type, args), **{k: npu_type(v) for k, v in kwargs.items()})

    return wrapper


def autocast_dtype(name: str) -> How:
    """torch.get_autocast_gpu_dtype() and its setter, which name no device."""

    def how(original: Any, place: Place) -> Any:
        function = getattr(torch, name)

        def wrapper(*args: Any) -> Any:
            return function("npu", *args) if _state.devices else original(*args)

        return wrapper

    return how


_AUTOCAST = "torch.amp.autocast_mode"
_COMMON = "torch.cuda.amp torch.cuda.amp.common"
_BY_AMP = "it calls torch.amp, which has rows of its own"
_typed = argument(npu_type, "device_type")
AUTOCAST = (
    Row(f"{_AUTOCAST}.autocast", "__init__", _typed),
    Row(_AUTOCAST, "custom_fwd custom_bwd is_autocast_available", _typed),
    Row("torch.amp", "custom_fwd custom_bwd is_autocast_available", like(_AUTOCAST)),
    Row("torch", "is_autocast_enabled", autocast_state),
    Row("torch", "set_autocast_enabled", autocast_switch),
    Row("torch", "get_autocast_dtype set_autocast_dtype", argument(npu_type, "device_type", 0)),
    Row("torch", "get_autocast_gpu_dtype", autocast_dtype("get_autocast_dtype")),
    Row("torch", "set_autocast_gpu_dtype", autocast_dtype("set_autocast_dtype")),
    Row("torch.amp.grad_scaler.GradScaler", "__init__", argument(npu_type, "device")),
    Row("torch.cuda.amp torch.cuda.amp.grad_scaler", "GradScaler", npu("amp.GradScaler")),
    Row(_COMMON, "amp_definitely_not_available", for_users(always(False))),
    Row("torch.cuda.amp torch.cuda.amp.autocast_mode", "autocast", left(_BY_AMP)),
    Row("torch.cuda.amp torch.cuda.amp.autocast_mode", "custom_fwd custom_bwd", left(_BY_AMP)),
)


# ---- HF32, which is to the NPU what TF32 is to CUDA --------------------------------------------


def _set_hf32(operator: str) -> None:
    """Set torch_npu's switch to what torch's own says now."""
    if not _state.devices:
        return
    precision = getattr(torch._C, "_get_fp32_precision_getter", None)
    if precision is not None:
        on = precision("cuda", operator) == "tf32"
    else:  # before torch 2.9
        name = {"matmul": "_get_cublas_allow_tf32", "conv": "_get_cudnn_allow_tf32"}[operator]
        on = getattr(torch._C, name).__wrapped__()
    getattr(torch.npu, operator).allow_hf32 = on


def hf32(operator: Literal["matmul", "conv"]) -> How:
    """Hand a new value of torch's TF32 switch on to torch_npu's HF32 switch."""

    def how(original: Any, place: Place) -> Any:
        def wrapper(*args: Any) -> Any:
            with warnings.catch_warnings():  # torch 2.9 advises against it, and names this file
                warnings.filterwarnings("ignore", "Please use the new API settings")
                answer = original(*args)
            _set_hf32(operator)
            return answer

        return wrapper

    return how


def hf32_precision(original: Any, place: Place) -> Any:
    """Do so for torch.backends' fp32_precision, which names the back end and the operator."""
    changed = {"matmul": ("matmul",), "conv": ("conv",), "all": ("matmul", "conv")}

    def wrapper(backend: str, operator: str, precision: str) -> Any:
        answer = original(backend, operator, precision)
        for switch in changed.get(operator, ()) if backend in {"cuda", "generic"} else ():
            _set_hf32(switch)
        return answer

    return wrapper


def hf32_state(operator: Literal["matmul", "conv"]) -> How:
    """Answer for TF32 with the state of torch_npu's HF32 switch, whoever set it."""

    def how(original: Any, place: Place) -> Any:
        def wrapper() -> bool:
            return bool(getattr(torch.npu, operator).allow_hf32 if _state.devices else original())

        return wrapper

    return how


def cudnn_tf32(original: Any, place: Place) -> Any:
    """torch.backends.cudnn.allow_tf32, a descriptor of two functions that rows above patched."""
    return type(original)(torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32)


_SDPA = "they set torch's own switches, and torch.npu's set the same"
HF32 = (
    Row("torch._C", "_set_cublas_allow_tf32 _set_float32_matmul_precision", hf32("matmul")),
    Row("torch._C", "_set_cudnn_allow_tf32", hf32("conv")),
    Row("torch._C", "_set_fp32_precision_setter", hf32_precision),
    Row("torch._C", "_get_cublas_allow_tf32", hf32_state("matmul")),
    Row("torch._C", "_get_cudnn_allow_tf32", hf32_state("conv")),
    Row("torch.backends.cudnn.CudnnModule", "allow_tf32", cudnn_tf32),
    Row("torch.backends.cuda", "is_built", for_users(always(True))),
    Row("torch.backends.cuda", "sdp_kernel enable_flash_sdp enable_math_sdp", left(_SDPA)),
    Row("torch.backends.cuda", "enable_mem_efficient_sdp enable_cudnn_sdp", left(_SDPA)),
)


# ---- GELU in the form that is asked for --------------------------------------------------------
#
# torch_npu's kernels of gelu compute the tanh form whatever is asked for, up to 4.7e-4 from erf;
# torch_npu.npu_gelu takes the form (op-plugin's documentation of npu_gelu says both). Every gelu
# comes to one of four kernels by torch's dispatcher, which are replaced there.

GELU_VARIABLE = "NPU_PATCH_GELU"  # "chip" leaves torch_npu's kernels in place


def _gelu_from_parts(x: Any, approximate: str, grad: Any = None) -> Any:
    """Compute GELU, or its gradient times `grad`, in fp32 from other operators."""
    y = x.float()
    if approximate == "tanh":  # y * (1 + tanh(z)) / 2, which is y * sigmoid(2 z)
        slope = math.sqrt(2 / math.pi)
        gate = torch.sigmoid(2 * slope * (y + 0.044715 * y**3))
        steepness = 2 * gate * (1 - gate) * slope * (1 + 3 * 0.044715 * y**2)
    else:
        gate = 0.5 * (1 + torch.erf(y * math.sqrt(0.5)))
        steepness = torch.exp(-0.5 * y**2) * math.sqrt(0.5 / math.pi)
    return (y * gate if grad is None else grad * (gate + y * steepness)).to(x.dtype)


def _takes_form(name: str) -> Callable[..., Any]:
    """Return torch_npu's operator, or where it or CANN's part of it is missing, what stands in."""
    operator = getattr(getattr(torch.ops.npu, name, None), "default", None)
    lacking = f"This host has no {name}: GELU is put together from other operators, and slower."

    def compute(*tensors: Any, approximate: str = "none") -> Any:
        if operator is not None and lacking not in _state.said:
            try:
                return operator(*tensors, approximate=approximate)
            except RuntimeError as error:
                if "GetWorkspaceSize not in" not in str(error):
                    raise
        _warn_once(lacking)
        *grad, x = tensors
        return _gelu_from_parts(x, approximate, *grad)

    return compute


def _replace_gelu() -> Literal["asked", "chip"]:
    """Register the kernels, unless the variable says otherwise; return the form that runs now."""
    choice = os.environ.get(GELU_VARIABLE, "")
    if choice == "chip":
        return "chip"
    if choice:
        _warn_once(f"{GELU_VARIABLE}={choice} is ignored: it may be unset, or chip.")
    _state.undo.append(_leave_gelu_to_the_chip)
    _register_gelu()
    return "asked"


def _leave_gelu_to_the_chip() -> None:
    if _state.gelu is not None:
        _state.gelu._destroy()
        _state.gelu = None


def _register_gelu() -> None:
    forward, backward = _takes_form("npu_gelu"), _takes_form("npu_gelu_backward")

    def gelu(x: Any, *, approximate: str = "none") -> Any:
        y = forward(x, approximate=approximate)
        if x.is_contiguous():
            return y
        strides = torch.empty_like(x.to("meta")).stride()  # as torch keeps them
        return y.new_empty_strided(y.shape, strides).copy_(y)

    def gelu_(x: Any, *, approximate: str = "none") -> Any:
        return x.copy_(forward(x, approximate=approximate))

    def gelu_out(x: Any, *, approximate: str = "none", out: Any) -> Any:
        if out.shape != x.shape:
            out.resize_(x.shape)
        return out.copy_(forward(x, approximate=approximate))

    _state.gelu = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name, kernel in (
        ("gelu", gelu),
        ("gelu_", gelu_),
        ("gelu.out", gelu_out),
        ("gelu_backward", backward),
    ):
        _state.gelu.impl(name, kernel)


# ---- torch.compile, whose back end needs a Triton for the NPU that torch_npu does not bring -----

_COMPILE = "TORCH_COMPILE_DISABLE"


def _stop_compiling() -> None:
    """Let torch.compile return functions as they are, here and in child processes.

    Dynamo reads the variable when it is imported, which may have been before. A value that the user
    set stays.
    """
    if _COMPILE in os.environ:
        return
    config = sys.modules.get("torch._dynamo.config")
    _state.undo.append(functools.partial(_let_compile, config is not None and config.disable))
    os.environ[_COMPILE] = "1"
    if config is not None:
        config.disable = True  # type: ignore[attr-defined]


def _let_compile(disable: bool) -> None:
    os.environ.pop(_COMPILE, None)
    config = sys.modules.get("torch._dynamo.config")
    if config is not None:
        config.disable = disable  # type: ignore[attr-defined]


# ---- Profilers, and ranges on their time line --------------------------------------------------


def npu_activities(activities: Any) -> Any:
    """Return a profiler's activities for the NPU; without CANN's profiling library, the host's."""
    kind = torch.profiler.ProfilerActivity
    if not _state.devices or not activities or kind.CUDA not in activities:
        return activities
    chosen = [activity for activity in activities if activity != kind.CUDA]
    if _can_profile():
        return [*chosen, kind.PrivateUse1]
    return chosen or [kind.CPU]


def _can_profile() -> bool:
    """Return whether CANN's profiling library is there; torch_npu's profiler raises without it."""
    try:
        ctypes.CDLL("libmspti.so")
    except OSError:
        _warn_once("The profiler shows the host alone: CANN's libmspti.so is not to be found.")
        return False
    return True


def legacy_profiler(original: Any, place: Place) -> Any:
    """torch.autograd.profiler.profile(use_cuda=True) and (use_device="cuda")."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _state.devices and (kwargs.get("use_device") == "cuda" or kwargs.pop("use_cuda", False)):
            kwargs["use_device"] = "npu" if _can_profile() else None
        return original(*args, **kwargs)

    return wrapper


def nvtx(original: Any, place: Place) -> Any:
    """The functions of torch.cuda.nvtx, on mstx: they mark the profiler's time line."""
    mstx, ranges = torch.npu.mstx, _state.ranges

    def range_push(msg: str) -> int:
        ranges.open = [*getattr(ranges, "open", []), mstx.range_start(str(msg))]
        return len(ranges.open) - 1

    def range_pop() -> int:
        if not getattr(ranges, "open", []):
            return -1
        mstx.range_end(ranges.open.pop())
        return len(ranges.open)

    def range_start(msg: str) -> int:
        return int(mstx.range_start(str(msg)) or 0)

    def range_end(range_id: int) -> None:
        mstx.range_end(range_id)

    def mark(msg: str) -> None:
        mstx.mark(str(msg))

    functions = (range_push, range_pop, range_start, range_end, mark)
    return {function.__name__: function for function in functions}[place.name]


_KINETO = "torch.profiler.profiler._KinetoProfile"
PROFILERS = (
    Row(_KINETO, "__init__", argument(npu_activities, "activities")),
    Row("torch.autograd.profiler.profile", "__init__", legacy_profiler),
    Row("torch.cuda.nvtx", "range_push range_pop range_start range_end mark", nvtx),
    Row("torch.cuda.nvtx", "range", left("it calls range_push and range_pop")),
    Row("torch.cuda.profiler", "start stop profile", left("they call cudart()")),
    Row("torch.cuda.profiler", "init", missing("torch.profiler needs no file for it")),
)


# ---- Process groups ----------------------------------------------------------------------------


def hccl(backend: Any) -> Any:
    """Return a back end's name with HCCL for NCCL: "cpu:gloo,cuda:nccl" -> "cpu:gloo,npu:hccl"."""
    if not _state.devices or not isinstance(backend, str):
        return backend
    ours = {"nccl": "hccl", "cuda": "npu"}
    return "".join(ours.get(word.lower(), word) for word in re.split("([,:])", backend))


def distributed_backend(original: Any, place: Place) -> Any:
    """torch.distributed.get_backend: "hccl", which in the user's code equals "nccl" too."""

    def wrapper(*args: Any, **kwargs: Any) -> str:
        answer: str = original(*args, **kwargs)
        asked = answer == "hccl" and _state.devices and _asked_by_user()
        return _either("hccl", "nccl") if asked else answer

    return wrapper


_GROUPS = "torch.distributed.distributed_c10d torch.distributed"
_MESH = "torch.distributed.device_mesh"
GROUPS = (
    Row(_GROUPS, "init_process_group is_backend_available", argument(hccl, "backend")),
    Row(_GROUPS, "new_group new_subgroups", argument(hccl, "backend")),
    Row(_GROUPS, "new_subgroups_by_enumeration", argument(hccl, "backend")),
    Row(_GROUPS, "init_process_group new_group", argument(npu_device, "device_id")),
    Row(_GROUPS, "get_default_backend_for_device", argument(npu_type, "device")),
    Row(_GROUPS, "get_backend", distributed_backend),
    Row(_GROUPS, "is_nccl_available", for_users(always(True))),
    Row(_MESH, "init_device_mesh", _typed),
    Row("torch.distributed", "init_device_mesh", like(_MESH)),
    Row(f"{_MESH}.DeviceMesh", "__init__", _typed),
)


# ---- torch.cuda itself, name by name -----------------------------------------------------------


def undoing(original: Any, place: Place) -> Any:
    """Leave the mark by which another copy of this module finds the patch applied, to undo it."""
    return restore


def others(path: str) -> str:
    """Find the functions and classes of torch.cuda that no other row names."""
    named = {name for row in TABLE if row.where == path for name in str(row.names).split()}
    names = [name for name in torch.cuda.__all__ if name not in named]
    return " ".join(name for name in names if callable(getattr(torch.cuda, name)))


def capability(original: Any, place: Place) -> Any:
    """The compute capability: programs ask it for bf16, which begins at 8.0.

    torch_npu answers None unless TORCH_NPU_DEVICE_CAPABILITY says what to answer.
    """

    def get_device_capability(device: Any = None) -> tuple[int, int]:
        torch.npu.get_device_properties(device)  # raises for a device that is not there
        if os.environ.get("TORCH_NPU_DEVICE_CAPABILITY"):
            return torch.npu.get_device_capability(device)  # type: ignore[no-any-return]
        return (8, 0) if torch.npu.is_bf16_supported() else (7, 0)

    return get_device_capability


class _Properties:
    """The properties of a device: torch_npu's, with the numbers of CUDA that it leaves None."""

    def __init__(self, properties: Any, capability: tuple[int, int]) -> None:
        self._properties = properties
        self.major, self.minor = capability
        cores = getattr(properties, "multi_processor_count", None)
        self.multi_processor_count = cores or properties.cube_core_num

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties, name)

    def __repr__(self) -> str:
        return repr(self._properties)


def properties(original: Any, place: Place) -> Any:
    """torch.cuda.get_device_properties, complete."""

    def get_device_properties(device: Any = None) -> _Properties:
        found = torch.npu.get_device_properties(device)
        return _Properties(found, torch.cuda.get_device_capability(device))

    return get_device_properties


class _Cudart:
    """What torch.cuda.cudart() offers, as far as an NPU has it; 0 means success there."""

    cudaProfilerStart = cudaProfilerStop = staticmethod(lambda: 0)  # noqa: N815 - CUDA's names
    cudaMemGetInfo = staticmethod(lambda device=None: torch.cuda.mem_get_info(device))  # noqa: N815

    def __getattr__(self, name: str) -> NoReturn:
        message = f"{name} belongs to CUDA's runtime, which an Ascend host does not have."
        raise type("NotOnNPU", (NotImplementedError, AttributeError), {})(message)


def check_error(original: Any, place: Place) -> Any:
    """torch.cuda.check_error(result)."""

    def check(result: int) -> None:
        if int(result):
            raise RuntimeError(f"The runtime reports error {int(result)}.")

    return check


def memory_info(original: Any, place: Place) -> Any:
    """torch.cuda.mem_get_info, which on the NPU fails unless a device was chosen before."""

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        with torch.npu.device(torch.npu.current_device() if device is None else device):
            return torch.npu.mem_get_info(device)  # type: ignore[no-any-return]

    return mem_get_info


def memory_used(original: Any, place: Place) -> Any:
    """torch.cuda.device_memory_used: the bytes in use on the device, by anybody."""

    def device_memory_used(device: Any = None) -> int:
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)

    return device_memory_used


def stream_from_pointer(original: Any, place: Place) -> Any:
    """torch.cuda.get_stream_from_external(data_ptr, device)."""
    return lambda data_ptr, device=None: torch.npu.ExternalStream(data_ptr, device)


def default_generators(original: Any, place: Place) -> Any:
    """torch.cuda.default_generators, which torch_npu makes when it starts the device."""

    def update() -> None:
        if _state.devices:
            torch.cuda.default_generators = torch.npu.default_generators

    torch.npu._lazy_call(update)
    return torch.npu.default_generators


def graph(original: Any, place: Place) -> Any:
    """torch.cuda.graph, whose first argument has another name and whose last another place."""
    if not hasattr(torch.npu, "graph"):
        return missing("this torch_npu has none")(original, place)

    def __init__(  # noqa: N807 - it becomes a method
        self: Any,
        cuda_graph: Any,
        pool: Any = None,
        stream: Any = None,
        capture_error_mode: str = "global",
        **kwargs: Any,
    ) -> None:
        kwargs["capture_error_mode"] = capture_error_mode
        torch.npu.graph.__init__(self, cuda_graph, pool=pool, stream=stream, **kwargs)

    body = {"__module__": place.where, "__init__": __init__}
    return type(place.name, (torch.npu.graph,), body)


_BUILD = "they describe the build of torch, which has no CUDA"
_CACHE = "PYTORCH_NO_NPU_MEMORY_CACHING=1 switches torch_npu's allocator off"
_ERRORS = "types of errors that nothing raises here"
_ROWS = "a module whose names have rows of their own"
_SMI = "npu-smi info shows it"
TORCH_CUDA = (
    Row("torch.cuda", "_npu_patch", undoing, new=True),
    Row("torch.cuda", "is_available device_count", for_users(same)),
    Row("torch.cuda", "get_device_capability", capability),
    Row("torch.cuda", "get_device_properties", properties),
    Row("torch.cuda", "default_generators", default_generators),
    Row("torch.cuda", "CUDAGraph", npu("NPUGraph")),
    Row("torch.cuda", "CUDAPluggableAllocator", npu("NPUPluggableAllocator")),
    Row("torch.cuda", "graph", graph),
    Row("torch.cuda", "cudart", always(_Cudart())),
    Row("torch.cuda", "check_error", check_error),
    Row("torch.cuda", "mem_get_info", memory_info),
    Row("torch.cuda", "device_memory_used", memory_used),
    Row("torch.cuda", "get_stream_from_external", stream_from_pointer),
    Row("torch.cuda", "is_tf32_supported", always(True)),  # as HF32
    Row("torch.cuda", "_is_in_bad_fork _lazy_call _sleep _get_device _get_generator", same),
    Row("torch.cuda", "memory_usage temperature power_draw clock_rate", missing(_SMI)),
    Row("torch.cuda", "list_gpu_processes", missing(_SMI)),
    Row("torch.cuda", "caching_allocator_enable caching_allocator_disabled", missing(_CACHE)),
    Row("torch.cuda", "current_solver_handle", missing("CANN has no cuSOLVER")),
    Row("torch.cuda", "GreenContext", missing("torch.npu.set_stream_limit shares the cores")),
    Row("torch.cuda", "ComplexFloatStorage ComplexDoubleStorage", missing("use a tensor")),
    Row("torch.cuda", "CudaError cudaStatus DeferredCudaCallError", left(_ERRORS)),
    Row("torch.cuda", "get_arch_list get_gencode_flags has_half has_magma", left(_BUILD)),
    Row("torch.cuda", "amp memory random streams graphs nvtx profiler", left(_ROWS)),
    Row("torch.cuda", "nccl tunable gds green_contexts", left(_ROWS)),
    Row("torch.cuda", "comm jiterator", left("torch_npu answers for what they call")),
    Row("torch.cuda", "sparse", left("its old types have torch.sparse_coo_tensor instead")),
    Row("torch.cuda", others, same),
)


# ---- The modules in torch.cuda; torch_npu, where it takes a device or lacks a name of CUDA's ----


def public(path: str) -> str:
    """Find all public names of a module; green_contexts of torch 2.10 has no list of them."""
    module = _find(path)
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == path)
    return " ".join(getattr(module, "__all__", None) or (n for n in own if n[0] != "_"))


def exported(path: str) -> str:
    """Find the public names of a module in torch.cuda that torch.cuda has itself."""
    return " ".join(name for name in public(path).split() if hasattr(torch.cuda, name))


def alias(other: str) -> How:
    """Give an attribute a second name."""
    return lambda original, place: property(lambda self: getattr(self, other))


_HCCL = "torch.distributed with the back end hccl does this"
_INDEXED = "torch_npu.npu.utils torch_npu.npu.memory torch_npu.npu"
INSIDE = (
    Row("torch.cuda.memory torch.cuda.random", exported, like("torch.cuda")),
    Row("torch.cuda.graphs torch.cuda.green_contexts", exported, like("torch.cuda")),
    Row("torch.cuda.streams", "Stream Event ExternalStream", like("torch.cuda")),
    Row("torch.cuda.profiler", "cudart check_error", like("torch.cuda")),
    Row("torch.cuda.memory", "_record_memory_history _snapshot _dump_snapshot", same),
    Row("torch.cuda.memory", "_set_allocator_settings _get_current_allocator", same),
    Row("torch.cuda.nccl", "all_reduce reduce broadcast all_gather", missing(_HCCL)),
    Row("torch.cuda.nccl", "reduce_scatter", missing(_HCCL)),
    Row("torch.cuda.nccl", "version", missing("torch_npu.npu.utils.get_cann_version('HCCL')")),
    Row("torch.cuda.tunable", public, missing("CANN tunes its operators by itself")),
    Row("torch.cuda.gds", public, missing("load through host memory")),
    Row(_INDEXED, "_get_device_index", argument(npu_device, "device")),
    Row("torch.cuda._utils", "_get_device_index", like("torch_npu.npu.utils")),
    Row("torch_npu.npu.streams.Stream", "cuda_stream", alias("npu_stream"), new=True),
    Row("torch_npu.npu.streams.Event", "cuda_event", alias("npu_event"), new=True),
)

TABLE = (
    *DEVICES,
    *FUNCTIONS,
    *TENSORS,
    *FILES,
    *AUTOCAST,
    *HF32,
    *PROFILERS,
    *GROUPS,
    *TORCH_CUDA,
    *INSIDE,
)


# ---- The command -------------------------------------------------------------------------------


def _execute(arguments: list[str]) -> None:
    """Run a script, or with -m a module, as ``python3`` itself would."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __package__=None, __annotations__={})
    path = arguments[0]
    if path == "-m":
        sys.argv = ["-m", *arguments[2:]]
        sys.modules["__main__"] = main
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    sys.argv = list(arguments)
    file = os.path.abspath(path)  # noqa: PTH100 - as Python does it: without following links
    folder = Path(path).resolve().parent
    archive = Path(path).is_dir() or zipfile.is_zipfile(path)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = file if archive else str(folder)
    sys.modules["__main__"] = main
    if archive:
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        return
    loader = importlib.machinery.SourceFileLoader("__main__", file)
    main.__dict__.update(__file__=file, __loader__=loader, __cached__=None)
    with io.open_code(file) as stream:
        code = compile(stream.read(), file, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _hide_our_frames(error: BaseException) -> None:
    """Let the traceback of an error begin where the script does."""
    shown, hook = error.__traceback__, sys.excepthook
    while shown is not None and shown.tb_frame.f_code is not _execute.__code__:
        shown = shown.tb_next
    shown = shown.tb_next if shown is not None else None

    def show(
        kind: type[BaseException], value: BaseException, _: types.TracebackType | None
    ) -> None:
        hook(kind, value.with_traceback(shown), shown)

    sys.excepthook = show


def _diagnose(arguments: list[str]) -> int:
    """Let the kit's doctor look at the host; where this file was copied alone, print the status."""
    try:
        doctor = importlib.import_module("kit.doctor")
    except ModuleNotFoundError:
        logging.getLogger("npu_patch").addHandler(logging.NullHandler())  # printed here instead
        found = importlib.import_module("npu_patch").status()
        print(json.dumps(asdict(found)) if arguments else found.message)  # noqa: T201
        return int(not found.applied)
    return int(doctor.main(arguments))


def main(arguments: list[str]) -> int:
    """Run the command; see the top of this file."""
    if not arguments or arguments[0] in {"--json", "--bundle"}:
        return _diagnose(arguments)
    if (
        arguments[0] in {"-h", "--help"}
        or arguments == ["-m"]
        or (arguments[0].startswith("-") and arguments[0] != "-m")
    ):
        print(__doc__)  # noqa: T201
        return 0 if arguments[0] in {"-h", "--help"} else 2
    if arguments[0] != "-m" and not Path(arguments[0]).exists():
        file = Path(arguments[0]).absolute()
        message = f"can't open file '{file}': [Errno 2] No such file or directory"
        print(f"{sys.executable}: {message}", file=sys.stderr)  # noqa: T201
        return 2
    importlib.import_module("npu_patch")  # under its own name, which applies the patch
    try:
        _execute(arguments)
    except SystemExit:
        raise
    except BaseException as error:
        _hide_our_frames(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
_apply_at_import()
