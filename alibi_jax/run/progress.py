"""A progress bar on the terminal."""

import datetime
import sys
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alibi_jax.run.display import exponential, number
from alibi_jax.run.display import label as shown_label
from alibi_jax.run.output import LossyStream


class Bar:
    """Step, loss, tokens/s and time left on a terminal; a plain line every ten seconds where output is not a terminal."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.first = shown_label(label), total, done
        self.printed = self.begun = time.monotonic()
        self.stream = LossyStream(sys.stderr) if sys.stderr else None  # rich would end the process at a closed pipe
        console = Console(file=self.stream)
        self.live = self.stream is not None and console.is_terminal
        left = TimeRemainingColumn()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            left,
        )
        self.progress = Progress(*columns, console=console, disable=not self.live or jax.process_index() != 0)
        self.task = self.progress.add_task(self.label, total=total, completed=done, text="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, done: int, text: str) -> None:
        """Shows how much is done, and the text beside it."""
        self.progress.update(self.task, completed=done, text=text)
        plain = self.stream is not None and not self.live and jax.process_index() == 0
        if plain and (time.monotonic() - self.printed > 10 or done == self.total):
            self.printed = time.monotonic()
            left = (self.printed - self.begun) * (self.total - done) / max(1, done - self.first)
            line = f"{self.label}: {done}/{self.total} {text}  {datetime.timedelta(seconds=round(left))} left"
            print(line, file=self.stream, flush=True)


def loss_text(nats: float, tokens_per_second: float) -> str:
    """Returns the text beside the bar."""
    perplexity = number(exponential(nats), 1)
    return f"loss {number(nats, 3)} nats  perplexity {perplexity}  {tokens_per_second:,.0f} tokens/s"
