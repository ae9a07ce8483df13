"""Programs compiled several at a time."""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from benchmarks.gpu.part import attempt

Key = TypeVar("Key", bound=Hashable)


def compile_each(traces: dict[Key, Callable[[], Callable[[], Any]]]) -> dict[Key, tuple[Any, str]]:
    """Returns key -> (what was compiled, ""), or (None, why it could not be); traces: key -> what returns what compiles.

    Traced one after the other, and compiled as soon as that is done: XLA's compiler and ptxas leave Python free.
    """
    with ThreadPoolExecutor() as pool:
        futures = {}
        for key, trace in traces.items():
            compile_, reason = attempt(trace)
            futures[key] = (
                pool.submit(lambda reason=reason: (None, reason)) if reason else pool.submit(attempt, compile_)
            )
    return {key: future.result() for key, future in futures.items()}
