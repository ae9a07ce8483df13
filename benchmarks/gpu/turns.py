"""Timing in turns: what shares a machine is compared in one run, one after the other, again and again."""

import math
import time
from collections.abc import Callable
from typing import Any

MOST_CALLS = 50  # of a turn


def in_turns(
    calls: dict[str, Callable[[], Any]], wait: Callable[[Any], None], turns: int, seconds: float
) -> dict[str, list[float]]:
    """Returns name -> seconds a call, a number a turn, of calls that were made before and so need no compilation.

    A call may return before the device has finished: the last one of a turn is waited for. A turn makes as many calls as take
    about `seconds`, so a call much shorter than its dispatch by the host is timed as the latter.
    """
    counts = {name: _calls_within(call, wait, seconds) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(_seconds(call, wait, counts[name]))
    return times


def _seconds(call: Callable[[], Any], wait: Callable[[Any], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    wait(result)
    return (time.perf_counter() - start) / count


def _calls_within(call: Callable[[], Any], wait: Callable[[Any], None], seconds: float) -> int:
    return max(1, min(MOST_CALLS, math.ceil(seconds / _seconds(call, wait, 1))))
