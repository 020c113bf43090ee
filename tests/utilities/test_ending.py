"""At the end of a program, threads of libraries come to their end first."""

from __future__ import annotations

import hashlib
import sys
import threading

import pytest

from fabric_lite.utilities.ending import let_threads_finish


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what threads do")
def test_a_thread_that_runs_is_waited_for() -> None:
    begun, done = threading.Event(), []

    def work() -> None:
        begun.set()
        done.append(hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000))  # without the interpreter

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    let_threads_finish(60_000)
    assert done
    thread.join()


def test_one_that_waits_is_not() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    let_threads_finish()
    assert thread.is_alive()
    end.set()
    thread.join()
