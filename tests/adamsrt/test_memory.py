"""Freed memory stays with the process where it is asked to: counted in pages that the system had to give."""

import os
import subprocess
import sys

import pytest

BUFFERS, MEBIBYTES, PAGE = 10, 64, os.sysconf("SC_PAGE_SIZE")
CODE = f"""
import ctypes, resource, sys
from adamsrt.memory import keep_freed_memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    ctypes.memset(buffer := libc.malloc({MEBIBYTES} << 20), 1, {MEBIBYTES} << 20)
    libc.free(ctypes.c_void_p(buffer))

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
ctypes.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
keeps = keep_freed_memory() if sys.argv[1] == "keep" else None
use()
before = pages()
for _ in range({BUFFERS}):
    use()
print(keeps, pages() - before)
"""


def run(way, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, way], env=clean | environment, capture_output=True, text=True, check=True
    )
    keeps, pages = done.stdout.split()
    return keeps, int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_buffer_is_made_of_the_pages_of_the_last_one():
    whole = BUFFERS * (MEBIBYTES << 20) // PAGE
    as_it_was, kept = run("leave"), run("keep")
    assert kept[0] == "True"
    # Huge pages, where the system gives them, are few; a kept buffer needs none of either.
    assert as_it_was[1] >= whole // 512
    assert kept[1] <= as_it_was[1] // 10


def test_a_user_who_has_set_the_allocator_up_keeps_that():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
