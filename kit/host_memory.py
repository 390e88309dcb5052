"""The host's memory: the process's peak, and freed memory kept for the next tensor."""

import ctypes
import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment] # told apart below

STATUS = Path("/proc/self/status")
# mallopt's parameters, from glibc's malloc.h; the threshold's largest value is 32 MiB.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 512 << 20
LARGEST_MMAP_THRESHOLD = 32 << 20


def host_peak_bytes() -> int | None:
    """Return the process's largest resident memory so far; None where the system does not say."""
    # getrusage's figure on Linux is the parent's where that was larger: it survives exec.
    if STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(found[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def keep_freed_memory() -> bool:
    """Let the process keep up to 512 MiB of freed memory instead of giving it back.

    glibc hands a large tensor's memory back when it is freed, and the system clears every page of
    the next one: work that frees and takes tens of megabytes block by block spends a third of its
    time on that. Affects the whole process; the peak stays what the tensors need.

    Returns:
        Whether the C library has taken the setting; False outside 64-bit glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    large = mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)  # 32-bit systems refuse it
    return bool(large and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
