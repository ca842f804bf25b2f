"""Files of rows: a frozen record a line, written whole and read strictly."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cl_lora.run_folder.layout import (
    ACCOUNTS_FILE,
    COEFFICIENTS_FILE,
    EMBEDDING_FILE,
    FACTS_FILE,
    RELATIONS_FILE,
    SCORES_FILE,
    SEALS_FILE,
    SIMILARITY_FILE,
    SPECTRA_FILE,
    TIMES_FILE,
)
from cl_lora.run_folder.records import (
    Account,
    AdapterFact,
    Coefficient,
    Embedding,
    Relation,
    Seal,
    Similarity,
    Spectrum,
    Timing,
)
from cl_lora.support import files
from cl_lora.support.errors import UserError

Row = TypeVar("Row")


@dataclass(frozen=True)
class RowFile(Generic[Row]):
    """A CSV file whose columns are the fields of a record: whole numbers, texts, finite floats.

    Attributes:
        name: of the file in the run folder.
        row: the record, a frozen dataclass.
        again: what brings a lost file back, in words.
    """

    name: str
    row: type[Row]
    again: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.types)

    @property
    def types(self) -> dict[str, type]:
        """Column -> int, str or float."""
        return {
            f.name: typing.get_type_hints(self.row)[f.name]
            for f in dataclasses.fields(typing.cast(Any, self.row))
        }

    def text(self, rows: Iterable[Row]) -> str:
        """Return rows as text; floats read back exactly."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = self.columns
        writer.writerow(columns)
        for row in rows:
            values = (getattr(row, column) for column in columns)
            writer.writerow([repr(v) if isinstance(v, float) else v for v in values])
        return text.getvalue()

    def read(self, path: Path) -> list[Row]:
        """Read a file that :meth:`text` made.

        Raises:
            UserError: if it is cut or damaged; names the line and the remedy.
        """
        try:
            text = files.read_bytes(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(path, f"it cannot be read as text ({error})") from error
        columns, types = self.columns, self.types
        found: list[Row] = []
        line = 0
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            for line, fields in enumerate(reader, start=1):
                if line == 1:
                    self._check_header(path, fields)
                    continue
                found.append(self._parse(dict(zip(columns, fields, strict=True)), types))
        except (csv.Error, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._damaged(path, f"line {line}: {error}") from error
        if not line:
            raise self._damaged(path, "the file is empty")
        if not text.endswith("\n"):
            # Cut within the last number, it would still read as one.
            raise self._damaged(path, "its last line is cut off")
        return found

    def _check_header(self, path: Path, fields: list[str]) -> None:
        missing = [c for c in self.columns if c not in fields]
        if missing:
            s = "s" * (len(missing) > 1)
            raise self._damaged(path, f"missing column{s} {', '.join(missing)}")
        if tuple(fields) != self.columns:
            wanted, got = ",".join(self.columns), ",".join(fields)
            raise self._damaged(path, f"expected the columns {wanted} but got {got}")

    def _parse(self, fields: dict[str, str], types: dict[str, type]) -> Row:
        values = {column: types[column](text) for column, text in fields.items()}
        for column, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"expected a finite {column} but got {fields[column]!r}")
        return self.row(**values)

    def _damaged(self, path: Path, problem: str) -> UserError:
        return UserError(f"{path} is damaged: {problem}; {self.again}")


_BOTH = (
    f"delete it and {SCORES_FILE} and run the command again: both are computed from the adapters"
)

COEFFICIENTS = RowFile(COEFFICIENTS_FILE, Coefficient, _BOTH)
"""What was merged with."""

ACCOUNTS = RowFile(ACCOUNTS_FILE, Account, _BOTH)
"""What it cost to make or to keep what is served."""

TIMES = RowFile(
    TIMES_FILE, Timing, "delete it: nothing else depends on it, and reports go without these times"
)
"""How long what is served takes."""

SEALS = RowFile(SEALS_FILE, Seal, _BOTH)
"""By what is known that the rows of a unit are those that were measured."""

_ITSELF = "delete it and run the command again: it is computed from the adapters"

SIMILARITIES = RowFile(SIMILARITY_FILE, Similarity, _ITSELF)
"""How alike upstream and downstream adapters make features."""

RELATIONS = RowFile(RELATIONS_FILE, Relation, _ITSELF)
"""How alike any two adapters of a bank are."""

FACTS = RowFile(FACTS_FILE, AdapterFact, _ITSELF)
"""How large each adapter is, and what it does to features."""

SPECTRA = RowFile(SPECTRA_FILE, Spectrum, _ITSELF)
"""How the singular values of each adapter fall off."""

EMBEDDINGS = RowFile(EMBEDDING_FILE, Embedding, _ITSELF)
"""Where t-SNE places the features of one task under each arm."""
