"""The errors that a run can end with, and what torch_npu's and CANN's messages mean.

Each error is one sentence that names the value and how to fix it. Standard library only.
"""

import re


class KitError(Exception):
    """A run that cannot go on: bad input, a missing device, a broken file. Exit code 2."""


class DeviceError(KitError):
    """The device failed or no longer computes: nothing measured after it can be trusted."""


class OutOfDeviceMemoryError(DeviceError):
    """Memory ran out before any work was given to the device: a smaller batch may still run."""


class CaptureError(KitError):
    """A forward cannot be captured as a graph, or compiled; the device may still compute."""


def one_line(error: object, most: int = 200) -> str:
    """Return an error's message on one line, so many characters at most; its type without one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


# CANN's own codes (EZ9999, EC0010, E40021), which stand in later lines of torch_npu's messages.
_CODE = re.compile(r"^(\[\w+\]:? *)?E[A-Z0-9]\d{4}: *")
_NO_CAUSE = re.compile(
    r"^(\[?Error\]?:?|Solution:|Possible Cause:|TraceBack|Traceback|\[PID:|Rectify)|"
    r"^E[A-Z0-9]\d{4}: *(Inner Error!?|\[PID: *\d+\][^A-Za-z]*)?$"
)
_OPERATOR = re.compile(r"operator name is (\w+)|call (\w+) failed")
# What users meet most, by what its message holds, and what helps.
_ADVICE = (
    (r"np\.float_` was removed|np\.float_ was removed", "CANN up to 8.2 needs numpy below 2: "
     "pip install 'numpy<2'"),
    (r"Cannot find bin of op|\b561103\b", "CANN's package of kernels for this chip is missing: "
     "install the Ascend-cann-kernels or -ops package that is made for it"),
    (r"libascend_hal\.so", "the driver's libraries are not in this container: mount "
     "/usr/local/Ascend/driver and add its lib64 folders to LD_LIBRARY_PATH"),
    (r"lib(hccl|ascendcl)\.so", "CANN is not loaded: source its set_env.sh"),
    (r"\b207008\b", "the device has no resources left for graphs: use a mode without -graph"),
    (r"No module named '(attr|attrs|cloudpickle|decorator|psutil|scipy|sympy)'",
     "CANN's own Python packages are missing: "
     "pip install attrs cloudpickle decorator psutil scipy sympy"),
    (r"ASCEND_RT_VISIBLE_DEVICES", "its numbers must ascend, as in 0,1: 1,0 means no device"),
)  # fmt: skip
_OUT_OF_MEMORY = re.compile(
    r"NPU out of memory|CUDA out of memory|DefaultCPUAllocator: can't allocate memory|"
    r"\bEL0004\b|\b207018\b"
)


def cause(message: str) -> str:
    """Return the line of a message that says what went wrong.

    torch_npu's first line often says only that a call failed: CANN's own line, which begins with
    a code, comes before it, then one that names an operator, then the first.
    """
    lines = [line.strip().rstrip(".") for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not _NO_CAUSE.search(line)] or lines
    for pattern in (_CODE, _OPERATOR):
        for line in telling:
            if pattern.search(line):
                return line
    return telling[0] if telling else ""


def advice(message: str) -> str:
    """Return what helps against an error of torch_npu or CANN; empty where nobody knows."""
    return next((words for pattern, words in _ADVICE if re.search(pattern, message)), "")


def failed_operator(message: str) -> str | None:
    """Return the operator that torch_npu's error message names, None where it names none."""
    found = _OPERATOR.search(message)
    return (found[1] or found[2]) if found else None


def says_out_of_memory(message: str) -> bool:
    """Return whether a message is that of memory that ran out.

    torch_npu up to 2.9.0 raises a plain RuntimeError for it, and so does the CPU's allocator.
    """
    return _OUT_OF_MEMORY.search(message) is not None
