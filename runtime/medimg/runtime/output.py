"""Predictions written for people, for programs and for spreadsheets."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from medimg.runtime.classifier import Prediction
from medimg.runtime.errors import NoNumberError, NotApplicableError
from medimg.runtime.files.plain import json_text, to_plain
from medimg.runtime.files.text import csv_cell, printable
from medimg.runtime.files.writing import written_whole
from medimg.runtime.streams import standard_output

_FATES = {NotApplicableError.__name__: "not applicable", NoNumberError.__name__: "no answer"}
"""What a table says of an error, by its type; "not read" of any other."""


@dataclass
class Outcome:
    """How many inputs were answered and how many failed, counted as they pass."""

    answered: int = 0
    failed: int = 0
    without_number: int = 0
    """How many of those that failed could be read, but the model gave no number for them."""

    def counting(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions through and count them."""
        for prediction in predictions:
            if prediction.error is None:
                self.answered += 1
            else:
                self.failed += 1
                self.without_number += prediction.error.type == NoNumberError.__name__
            yield prediction

    def summary(self) -> str:
        """Say it in one line."""
        silent = f", for {self.without_number} the model gave no number" if self.without_number else ""
        return f"{self.answered} answered, {self.failed - self.without_number} could not be read{silent}"


def write_predictions(predictions: Iterable[Prediction], style: str, destination: Path | None) -> None:
    """Write predictions as they come.

    Args:
        predictions: in the order of the inputs.
        style: `table`, `jsonl` or `csv`.
        destination: a file that appears when it is complete, or None for standard output.
    """
    write = _WRITERS[style]
    if destination is None:
        with standard_output() as file:
            write(predictions, file)
        return
    with written_whole(destination) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        write(predictions, file)


def json_line(prediction: Prediction) -> str:
    """One JSON object, laid out as the contract says: `top_k` or `error`, and `notes` where there are any."""
    fields = to_plain(prediction)
    del fields["top_k" if prediction.error else "error"]
    if not prediction.notes:
        del fields["notes"]
    return json_text(fields)


def _write_jsonl(predictions: Iterable[Prediction], file: TextIO) -> None:
    for prediction in predictions:
        file.write(json_line(prediction) + "\n")


def _write_csv(predictions: Iterable[Prediction], file: TextIO) -> None:
    rows = csv.writer(file)
    rows.writerow(("path", "frame", "rank", "index", "label", "score", "error", "notes"))
    for prediction in predictions:
        path, frame = csv_cell(prediction.path or ""), "" if prediction.frame is None else prediction.frame
        notes = csv_cell("; ".join(prediction.notes))
        if prediction.error:
            rows.writerow((path, frame, "", "", "", "", csv_cell(prediction.error.message), notes))
        for rank, best in enumerate(prediction.top_k, 1):
            score = f"{best.score:.6f}"
            rows.writerow((path, frame, rank, best.index, csv_cell(best.label), score, "", notes))


def _write_table(predictions: Iterable[Prediction], file: TextIO) -> None:
    for prediction in predictions:
        name = printable(prediction.path or "array")
        if prediction.error:
            reason = printable(prediction.error.message)
            fate = _FATES.get(prediction.error.type, "not read")
            file.write(f"{name}\n    {fate}: {reason.removeprefix(f'{name}: ')}\n")
            continue
        file.write(f"{name} [{prediction.frame}]\n" if prediction.frame else f"{name}\n")
        for best in prediction.top_k:
            file.write(f"    {best.score:7.4f}  {printable(best.label)}\n")
        for note in prediction.notes:
            file.write(f"    note: {printable(note)}\n")


_WRITERS: dict[str, Callable[[Iterable[Prediction], TextIO], None]] = {
    "table": _write_table,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
