"""Run CUDA code on an Ascend NPU: ``import npu_patch`` before ``import torch``, nothing else.

On a host whose torch_npu answers, importing this module remaps ``torch.cuda`` to ``torch.npu``. On
any other host it changes nothing, and makes ``import torch`` and ``import transformers`` safe. It
logs one line to the logger ``npu_patch`` that says which; `status` gives the same to programs.

The file needs only the standard library and torch, and works when it is copied alone.
"""

# ruff: noqa: ANN401 - its wrappers pass on whatever the functions of torch take and return

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

State = Literal[
    "applied",
    "restored",
    "torch_absent",
    "torch_npu_absent",
    "cann_absent",
    "version_mismatch",
    "torch_npu_broken",
    "no_device",
    "transfer_to_npu_active",
]
APPLIED_MESSAGE = "Applied NPU monkey-patch (torch.cuda -> torch.npu)"


@dataclass(frozen=True)
class Status:
    """What this module did on this host: the state, its cause and, where there is one, the mend."""

    state: State
    reason: str
    mend: str = ""

    @property
    def applied(self) -> bool:
        """Whether torch.cuda is remapped to torch.npu now."""
        return self.state == "applied"

    @property
    def message(self) -> str:
        """The one line that is logged."""
        if self.applied:
            return APPLIED_MESSAGE
        return " ".join(filter(None, (f"NPU monkey-patch not applied: {self.reason}.", self.mend)))


# ---- The host: which state is it in? Nothing here may import torch_npu where it cannot work. ----

_PAIRING = "Install the torch-npu made for this torch: pip install --no-deps 'torch-npu=={}.*'"
_CANN = "Install CANN, or load it: source /usr/local/Ascend/ascend-toolkit/set_env.sh"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> str:
    """Return the release of a version alone: 2.9.0.post1+git -> 2.9.0."""
    return ".".join(version.split("+", maxsplit=1)[0].split(".")[:3])


def _import_torch_npu() -> Status | None:
    """Import torch and torch_npu where that can work.

    Returns None where both are there, else the state of the host. Then torch does not try to load
    torch_npu, nor do this process's children, and libraries that look for torch_npu find none.
    """
    if not importlib.util.find_spec("torch"):
        return Status("torch_absent", "torch is not installed", "Install it: pip install torch")
    if sys.modules.get("torch_npu", ...) is None or not importlib.util.find_spec("torch_npu"):
        return Status("torch_npu_absent", "torch_npu is not installed")
    asked = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    failed = _try_torch_npu()
    if failed is None:
        if asked is None:
            del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]
        else:
            os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = asked
        return None
    importlib.import_module("torch")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_npu"]:
        del sys.modules[name]
    # None makes find_spec say that there is no torch_npu; else transformers imports it and dies.
    sys.modules["torch_npu"] = None  # type: ignore[assignment]
    return failed


def _try_torch_npu() -> Status | None:
    ours, theirs = _version("torch-npu"), _version("torch")
    if ours and _release(ours) != _release(theirs):
        reason = f"torch-npu {ours} is not made for torch {theirs}"
        return Status("version_mismatch", reason, _PAIRING.format(_release(theirs)))
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever it raises, the host is broken
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if ".so" in cause and "cannot open shared object file" in cause:
            library = cause.split(":")[0]
            return Status("cann_absent", f"CANN is not installed or not loaded ({library})", _CANN)
        return Status("torch_npu_broken", f"torch_npu does not import ({cause})", _CANN)
    return None


def _probe() -> Status | None:
    """Return None where the patch can be applied, else the state that says why not."""
    missing = _import_torch_npu()
    if missing is not None:
        return missing
    if "torch_npu.contrib.transfer_to_npu" in sys.modules:
        reason = "torch_npu.contrib.transfer_to_npu is active already and cannot be undone"
        return Status("transfer_to_npu_active", reason, "Import npu_patch instead of it.")
    if not importlib.import_module("torch").npu.is_available():
        reason = "torch_npu and CANN are here, but no NPU answers"
        mend = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and access to /dev/davinci*."
        return Status("no_device", reason, mend)
    return None


# ---- Devices: a "cuda" where a device is meant becomes an "npu", and nothing else does. ----

# Every way to name a CUDA device -> the NPU (torch's device index is an int8). Empty while the patch
# is not applied, so that a wrapper that somebody kept a reference to does nothing then.
_DEVICES: dict[Any, Any] = {}


def _fill_devices() -> None:
    import torch

    original = type(torch.empty(0).device)
    for text in ["cuda", *(f"cuda:{index}" for index in range(128))]:
        npu = original(text.replace("cuda", "npu"))
        _DEVICES[text] = _DEVICES[original(text)] = npu


def _npu_type(device_type: Any) -> Any:
    """Return "npu" for the device type "cuda", and anything else as it is."""
    return "npu" if _DEVICES and device_type == "cuda" else device_type


def _npu_device(device: Any) -> Any:
    """Return the NPU for a name of a CUDA device, and anything else as it is."""
    try:
        return _DEVICES.get(device, device)
    except TypeError:  # not hashable, so no device
        return device


def _by_keyword(original: Any, name: str = "device") -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if name in kwargs:
            kwargs[name] = _npu_device(kwargs[name])
        return original(*args, **kwargs)

    return wrapper


def _by_argument(position: int, name: str = "device", default: Any = None) -> Callable[[Any], Any]:
    change = _npu_type if name == "device_type" else _npu_device

    def how(original: Any) -> Any:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(args) > position:
                device = change(args[position])
                args = (*args[:position], device, *args[position + 1 :])
            elif name in kwargs:
                kwargs[name] = change(kwargs[name])
            elif default is not None:
                kwargs[name] = change(default)
            return original(*args, **kwargs)

        return wrapper

    return how


def _stand_in(original: Any) -> Any:
    """Return a class that stands in for a final C type and makes its objects."""

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if args:
                args = (_npu_device(args[0]), *args[1:])
            for name in ("device", "type"):
                if name in kwargs:
                    kwargs[name] = _npu_device(kwargs[name])
            if len(args) + len(kwargs) > 1:  # ("cuda", 1) is a type and an index
                args = tuple(getattr(a, "type", a) for a in args)
                kwargs = {k: getattr(a, "type", a) for k, a in kwargs.items()}
            return original(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, original)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, original)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is original

        def __hash__(cls) -> int:
            return hash(original)

    name = original.__name__
    return Meta(
        name, (), {"__module__": "torch", "__qualname__": name, "__doc__": original.__doc__}
    )


def _cuda_method(original: Any) -> Any:
    @functools.wraps(original)
    def cuda(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self.npu(_npu_device(device), *args, **kwargs)

    return cuda


# ---- The table: where, which names, how. ----

Row = tuple[str, str, Callable[..., Any]]
_ABSENT = object()


def _same_of(module: str) -> Callable[..., Any]:
    def how(original: Any, name: str) -> Any:
        return getattr(importlib.import_module(module), name, original)

    how.needs_name = True  # type: ignore[attr-defined]
    return how


def _value(value: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda original: value()


def _factories() -> str:
    """Return the names in torch that take a device: their schemas say so, or torch's own list."""
    import torch
    from torch.utils._device import _device_constructors

    # Filled now and kept by torch, so that `with torch.device(...)` still knows the originals.
    known = _device_constructors()
    schemas = torch._C._jit_get_schemas_for_operator
    names = []
    for name, value in vars(torch).items():
        if callable(value) and not isinstance(value, type):
            arguments = (a.name for schema in schemas(f"aten::{name}") for a in schema.arguments)
            try:
                found = value in known
            except TypeError:
                found = False
            if found or "device" in arguments:
                names.append(name)
    return " ".join(names)


def _npu(path: str) -> Any:
    value: Any = importlib.import_module("torch_npu").npu
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _rows() -> list[Row]:
    same = _same_of("torch_npu.npu")
    names = " ".join(importlib.import_module("torch.cuda").__all__)
    keep = {"amp", "memory", "random", "streams", "graphs"}
    return [
        ("torch", _factories(), _by_keyword),
        ("torch", "device", _stand_in),
        ("torch", "load", _by_argument(1, "map_location")),
        ("torch", "is_autocast_enabled", _by_argument(0, "device_type", "cuda")),
        ("torch.Tensor", "to", _by_argument(1)),
        ("torch.Tensor", "new_empty new_full new_ones new_tensor new_zeros", _by_keyword),
        ("torch.Tensor", "cuda", _cuda_method),
        ("torch.Tensor", "is_cuda", _value(lambda: importlib.import_module("torch").Tensor.is_npu)),
        ("torch.nn.Module", "to", _by_argument(1)),
        ("torch.nn.Module", "cuda", _cuda_method),
        ("torch.cuda", " ".join(n for n in names.split() if n not in keep), same),
        ("torch.cuda", "CUDAGraph", _value(lambda: _npu("NPUGraph"))),
        ("torch.amp.autocast_mode.autocast", "__init__", _by_argument(1, "device_type")),
        ("torch.amp.grad_scaler.GradScaler", "__init__", _by_argument(1, default="cuda")),
    ]


def _find(where: str) -> Any:
    """Return the module or class at a dotted path."""
    parts = where.split(".")
    for end in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[end:], owner)
    raise ModuleNotFoundError(where)


_undo: list[Callable[[], None]] = []
_lock = threading.RLock()
_status: Status


def _do(owner: Any, name: str, how: Callable[..., Any]) -> None:
    """Replace one attribute, and note how to put back what was there (nothing, if inherited)."""
    before = vars(owner).get(name, _ABSENT)
    original = getattr(owner, name)
    after = how(original, name) if hasattr(how, "needs_name") else how(original)
    if after is original:
        return
    put = functools.partial(setattr, owner, name, before)
    _undo.append(functools.partial(delattr, owner, name) if before is _ABSENT else put)
    setattr(owner, name, after)


def _undo_all() -> None:
    while _undo:
        _undo.pop()()
    _DEVICES.clear()


def apply() -> Status:
    """Remap torch.cuda to torch.npu where an NPU answers; say why not elsewhere.

    Applying twice is applying once. Where a row of the table fails, nothing is changed and the
    error is raised.
    """
    global _status  # noqa: PLW0603 - the state of the process, which is what this module changes
    with _lock:
        if _undo:
            return _status
        problem = _probe()
        if problem is not None:
            _status = problem
            return _status
        try:
            _fill_devices()
            for where, names, how in _rows():
                owner = _find(where)
                for name in names.split():
                    if hasattr(owner, name):
                        _do(owner, name, how)
        except BaseException:
            _undo_all()
            raise
        _status = Status("applied", "an NPU answers")
        return _status


def restore() -> Status:
    """Put back every attribute; the very objects that were there before `apply`."""
    global _status  # noqa: PLW0603
    with _lock:
        if _undo:
            _undo_all()
            _status = Status("restored", "it was applied and has been undone")
        return _status


@contextlib.contextmanager
def patched() -> Iterator[Status]:
    """Apply the patch for a while. Where it was applied already, it stays so afterwards."""
    was_applied = bool(_undo)
    current = apply()
    try:
        yield current
    finally:
        if not was_applied:
            restore()


def status() -> Status:
    """Return what this module did on this host."""
    return _status


if __name__ != "__main__":
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    apply()
    logging.getLogger("npu_patch").log(
        logging.INFO if not _status.mend else logging.WARNING, _status.message
    )
