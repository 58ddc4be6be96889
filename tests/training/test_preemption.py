"""SIGTERM, seen by the main thread of a process of its own."""

import subprocess
import sys

from ranker.training import preemption

CODE = """
import os, signal, threading
from ranker.training import preemption

def other(*_):
    print("as before")

signal.signal(signal.SIGTERM, other)
with preemption.watch() as is_stopped:
    print(is_stopped(1))
    os.kill(os.getpid(), signal.SIGTERM)
    print(is_stopped(2), is_stopped(3))
os.kill(os.getpid(), signal.SIGTERM)

def beside():
    with preemption.watch() as is_stopped:
        print(is_stopped(1))

thread = threading.Thread(target=beside)
thread.start()
thread.join()
"""


def test_sigterm_is_told_and_does_not_end_the_process():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = ["False", "True True", "as before", "False"]  # no signal in other threads
    assert done.stdout.splitlines() == lines


def test_nothing_stops_a_run_that_is_left_alone():
    with preemption.watch() as is_stopped:
        assert not is_stopped(1)
