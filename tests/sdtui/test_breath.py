"""Threads that compute let the screen go first."""

import threading
import time

from sdtui import breath as module
from sdtui.breath import Breath


def work(seconds=2 * module.WORK_SECONDS):
    """Keep this thread busy."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def test_after_some_work_a_thread_waits_until_the_loop_came_round():
    """However long the loop takes to answer, up to a limit."""
    told = []

    def soon(callback):
        threading.Timer(0.03, lambda: (told.append("came round"), callback())).start()

    breath = Breath(soon, lambda: False)
    work()
    assert not breath()
    assert told == ["came round"]


def test_without_work_nothing_is_waited_for():
    """So that it can be asked often."""
    asked = []
    breath = Breath(asked.append, lambda: False)
    for _ in range(3):
        breath()
    assert asked == []


def test_a_loop_that_never_answers_holds_no_thread_up(monkeypatch):
    """It may have ended."""
    monkeypatch.setattr(module, "LONGEST", 0.01)
    breath = Breath(lambda _callback: None, lambda: True)
    work()
    assert breath()
