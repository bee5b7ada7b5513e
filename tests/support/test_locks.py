"""A lock keeps others out while its process lives, and no longer."""

import os
import subprocess
import sys

import pytest

from pyro_vi.errors import UsageError
from pyro_vi.support.locks import NAME, Lock

HOLD = """
import sys
from pathlib import Path
from pyro_vi.support.locks import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_another_process_is_named_and_a_dead_one_is_not_waited_for(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"is in use by process {other.pid}; wait until it is done"):
            Lock(tmp_path)
        other.kill()
    assert (tmp_path / NAME).read_text() == str(other.pid)
    lock = Lock(tmp_path)
    assert (tmp_path / NAME).read_text() == str(os.getpid())
    lock.release()
    assert not (tmp_path / NAME).exists()


def test_two_in_one_process(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(UsageError, match="is in use by another fit"):
        Lock(tmp_path)
    lock.release()
    lock.release()
    Lock(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_has_no_part_in_a_lock(tmp_path):
    """It does not remove the lock of its parent, nor does it hold it after the parent's end."""
    lock, (reads, writes), (ready, says) = Lock(tmp_path), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        lock.release()
        os.write(says, b".")
        os.read(reads, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(UsageError, match="is in use by another fit"):
            Lock(tmp_path)
        assert (tmp_path / NAME).exists()
        os.close(lock._file)  # as the end of this process would
        lock._file = -1
        Lock(tmp_path).release()
    finally:
        os.write(writes, b".")
        os.waitpid(child, 0)
