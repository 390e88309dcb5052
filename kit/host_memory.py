"""The host's memory: what is freed is kept for the next tensor."""

import ctypes

# mallopt's parameters, from glibc's malloc.h; the threshold's largest value is 32 MiB.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 512 << 20
LARGEST_MMAP_THRESHOLD = 32 << 20


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
