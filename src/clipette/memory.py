"""Keep freed memory in the process: on Linux a training step otherwise returns and asks for the same pages each time.

glibc gives every freed block above 32 MB back to the kernel and takes fresh, zeroed pages for the next one. Activations
of a convolutional step are such blocks: on virtual machines page faults then cost as much as the arithmetic (measured:
docs/LOG.md). The settings cost nothing but that memory stays with the process until it ends.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep freed memory; once a process. False where the platform has no such allocator."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    largest = 2**31 - 1  # mallopt takes an int
    settings = ((M_MMAP_THRESHOLD, largest), (M_TRIM_THRESHOLD, largest), (M_TOP_PAD, 256 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
