"""What the command line shows: tables, a progress bar, one line an error."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from convpeft.training.history import Epoch

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120  # piped output is not squeezed into 80 columns


_SHORT = 20  # characters


def show_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> None:
    """Print a table; columns from `numbers_from` on are right-aligned. Cells are text, never markup.

    A first column of short names is never broken.
    """
    table = Table(title=_as_text(title) or None, title_justify="left", title_style="bold")
    short = max((len(row[0]) for row in rows), default=0) <= _SHORT
    for number, header in enumerate(headers):
        justify = "right" if number >= numbers_from else "left"
        table.add_column(_as_text(header), justify=justify, overflow="fold", no_wrap=number == 0 and short)
    for row in rows:
        table.add_row(*(_as_text(cell) for cell in row))
    console.print(table)


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(_as_text(text), soft_wrap=True)


def complain(text: str) -> None:
    """Print what went wrong, as one line on standard error."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))  # it may quote a file's words
    print(f"convpeft: {line}", file=sys.stderr)  # noqa: T201


@contextmanager
def warnings_as_lines() -> Generator[list[str]]:
    """Say each warning of the block as one line on standard error, and keep it in the list that is yielded."""
    told: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        told.append(" ".join(str(message).split()))
        complain(f"warning: {told[-1]}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield told


def _as_text(text: str) -> str:
    """Words of a file or of a user: they are no markup, and they do not steer the terminal."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def print_json(value: Any) -> None:
    """Print a value for programs to read."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))  # noqa: T201


class ProgressBar:
    """A bar over all epochs with loss, accuracy, images/s and the time that remains."""

    def __init__(self, epochs: int, images: int, *, quiet: bool = False, lines: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._lines, self._epochs, self._images = lines and not quiet, epochs, images
        self._task = self._progress.add_task("training", total=epochs * images, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def prepare(self, what: str, done: int, total: int) -> None:
        """So many images are done before the first epoch, and of how many."""
        self._progress.update(self._task, description=what, completed=done, total=total)
        if done >= total:
            self._progress.reset(self._task, description="training", total=self._epochs * self._images)

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """A batch of so many images was seen."""
        task = self._progress.tasks[0]
        if not task.completed:  # a resumed run starts at a later epoch
            self._progress.update(self._task, completed=(epoch - 1) * self._images)
        figures = f"loss {loss:.3f}  accuracy {accuracy:6.1%}  {task.speed or 0:6.0f} images/s"
        description = f"epoch {epoch}/{self._epochs}"
        self._progress.update(self._task, advance=images, description=description, figures=figures)

    def epoch(self, epoch: Epoch) -> None:
        """Print one line for an epoch that ended."""
        if not self._lines:
            return
        self._progress.console.print(
            f"epoch {epoch.epoch:>3}  train loss {epoch.train_loss:.4f}  train accuracy {epoch.train_accuracy:6.2%}  "
            f"validation loss {epoch.val_loss:.4f}  validation accuracy {epoch.val_accuracy:6.2%}  "
            f"{epoch.images_per_second:,.0f} images/s",
            soft_wrap=True,
        )


@contextmanager
def counting(total: int, *, quiet: bool = False) -> Generator[Callable[[str, int], None]]:
    """Show a bar over so many images; what is yielded is told what is done now and how many more images are done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda what, images: bar.update(task, description=what, advance=images)


class Steps:
    """A bar over steps of unequal length, each with a name."""

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """So many steps are done, the last of them this one."""
        self._progress.update(self._task, description=_as_text(what), completed=done, total=total)


def command_line() -> list[str]:
    """The command that is running, as it would be typed, for reports."""
    return ["convpeft", *sys.argv[1:]]


def plain(value: Any) -> str:
    """A value for a table cell."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value)
    return "-" if value is None else str(value)
