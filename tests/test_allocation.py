"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_that_is_freed_is_kept_for_what_comes_next():
    script = """
import resource, sys, torch
from smallm_hf.base.allocation import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = new_pages()
keep_freed_memory()
new_pages()
print(returned, new_pages())
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    returned, kept = map(int, answer.split())
    assert returned > 10_000 and kept < 100
