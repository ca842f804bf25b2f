"""Sets of multiple-choice questions: published ones by name, from the hub or from json lines.

An entry of the registry says how the columns of a set become questions. A folder of json lines
``root/NAME/SPLIT.jsonl`` holds the same columns, one row per line; one of another name is read with
columns of its own (see :func:`own`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cl_lora.benchmarks.sources.tree import require_folder
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.registry import check_free
from cl_lora.support.seeding import numpy_generator
from cl_lora.tasks import LETTERS

TRAIN, VAL, TEST = "train", "validation", "test"
_LEAST = 2  # options that make a choice


@dataclass(frozen=True)
class Question:
    """A question with its options.

    Attributes:
        question: what is asked.
        options: in the order in which they get their letters.
        answer: index of the right one.
        context: a passage that it is about; empty where there is none.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    context: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a set as it is published.

    Attributes:
        values: by column.
        where: what to call it in an error.
    """

    values: Mapping[str, Any]
    where: str

    def __getitem__(self, column: str) -> Any:
        """Return the value of a column; raise ``UserError`` if there is none."""
        if self.values.get(column) is None:
            raise UserError(
                f"Expected a value in column {column!r} of {self.where} but it has "
                f"{', '.join(k for k, v in self.values.items() if v is not None) or 'none'}; "
                "give the columns that this set is published with"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """Return a column that holds a text."""
        value = self[column]
        if not isinstance(value, str):
            raise self._wrong(column, "a text", value)
        return value.strip()

    def texts(self, column: str) -> tuple[str, ...]:
        """Return a column that holds a list of texts."""
        value = self[column]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._wrong(column, "a list of texts", value)
        for one in value:
            if not isinstance(one, str):
                raise self._wrong(column, "a list of texts", value)
        return tuple(one.strip() for one in value)

    def optional(self, column: str) -> str:
        """Return a column that holds a text or nothing, which is empty then."""
        return "" if self.values.get(column) is None else self.text(column)

    def _wrong(self, column: str, expected: str, value: object) -> UserError:
        return UserError(
            f"Expected column {column!r} of {self.where} to hold {expected} but got {value!r}; "
            "correct it"
        )

    def no_option(self, answer: object, options: Iterable[object]) -> UserError:
        """Return the error of an answer that is none of the options."""
        names = ", ".join(repr(option) for option in options)
        return UserError(
            f"Expected the answer of {self.where} to be one of its options {names} but got "
            f"{answer!r}; correct it, or leave the row out"
        )


Read = Callable[[Row, np.random.Generator], Question]
"""A row, and what to draw an order of options with -> its question."""


@dataclass(frozen=True)
class TextSet:
    """A set of questions that is known by name.

    Attributes:
        name: the name it is chosen by, and that of its folder.
        summary: one line: what is asked, and which published split is the test part.
        read: turns a row into a question.
        path: the name of the data set on the hub; None where there is none.
        config: its configuration there.
        splits: part -> the published split; no validation part where the set has none to spare.
    """

    name: str
    summary: str
    read: Read
    path: str | None = None
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {p: p for p in (TRAIN, VAL, TEST)})


TEXT_SETS: dict[str, TextSet] = {}
"""Every registered set of questions by name, in the order of their few-shot stream."""


def register_text_set(
    name: str,
    *,
    summary: str,
    path: str,
    config: str | None = None,
    splits: Mapping[str, str] | None = None,
) -> Callable[[Read], Read]:
    """Register the decorated ``read(row, generator) -> Question``; arguments of ``TextSet``.

    Raises:
        UserError: the name is taken.
    """

    def decorate(read: Read) -> Read:
        taken = TEXT_SETS.get(name)
        check_free("text set", name, taken.read if taken else None, read)
        given = {} if splits is None else {"splits": splits}
        TEXT_SETS[name] = TextSet(name, summary, read, path, config, **given)
        return read

    return decorate


@register_text_set(
    "sciq",
    summary="SciQ: science questions with a supporting passage (Welbl et al. 2017)",
    path="allenai/sciq",
)
def sciq(row: Row, generator: np.random.Generator) -> Question:
    """Read SciQ, which tells the right answer apart: the order of its four options is drawn."""
    columns = ("correct_answer", "distractor1", "distractor2", "distractor3")
    texts = [row.text(column) for column in columns]
    order = generator.permutation(len(texts))
    return Question(
        row.text("question"),
        tuple(texts[i] for i in order),
        int(np.flatnonzero(order == 0)[0]),
        row.optional("support"),
    )


@register_text_set(
    "commonsense_qa",
    summary="CommonsenseQA: everyday knowledge (Talmor et al. 2019); its test split has no "
    "answers, so the validation split is the test part",
    path="tau/commonsense_qa",
    splits={TRAIN: "train", TEST: "validation"},
)
def commonsense_qa(row: Row, generator: np.random.Generator) -> Question:
    """Read CommonsenseQA: labelled choices, and the label of the right one."""
    return _keyed(row)


@register_text_set(
    "quail",
    summary="QuAIL: reading comprehension (Rogers et al. 2020); the test part is its challenge "
    "split",
    path="textmachinelab/quail",
    splits={TRAIN: "train", VAL: "validation", TEST: "challenge"},
)
def quail(row: Row, generator: np.random.Generator) -> Question:
    """Read QuAIL: a passage, a list of answers, and the number of the right one from 0."""
    answers = row.texts("answers")
    number = row["correct_answer_id"]
    if not _is_index(number, answers):
        raise row.no_option(number, range(len(answers)))
    return Question(row.text("question"), answers, int(number), row.optional("context"))


@register_text_set(
    "arc_challenge",
    summary="ARC-Challenge: grade-school science (Clark et al. 2018)",
    path="allenai/ai2_arc",
    config="ARC-Challenge",
)
def arc_challenge(row: Row, generator: np.random.Generator) -> Question:
    """Read ARC: labelled choices, mostly A to D but some 1 to 4, and the label of the right one."""
    return _keyed(row)


def own(row: Row, generator: np.random.Generator) -> Question:
    """Read a set of one's own.

    Columns ``question``, ``options`` (a list of texts), ``answer`` (the text of the right option,
    its letter, or its number from 0) and, where there is one, ``context``.
    """
    options, answer = row.texts("options"), row["answer"]
    if isinstance(answer, str) and answer.strip() in options:
        number = options.index(answer.strip())
    elif answer in LETTERS[: len(options)]:
        number = LETTERS.index(answer)
    elif _is_index(answer, options):
        number = int(answer)
    else:
        raise row.no_option(answer, options)
    return Question(row.text("question"), options, number, row.optional("context"))


def _is_index(number: object, options: Sequence[str]) -> bool:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return whole and 0 <= int(number) < len(options)  # type: ignore[call-overload]


def _keyed(row: Row) -> Question:
    """Read labelled choices: ``{label: [...], text: [...]}``, or a list of such pairs."""
    choices, key = row["choices"], row.text("answerKey")
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        pairs = [Row(c if isinstance(c, Mapping) else {}, row.where) for c in choices]
        labels = tuple(pair.text("label") for pair in pairs)
        options = tuple(pair.text("text") for pair in pairs)
    else:
        both = Row(choices if isinstance(choices, Mapping) else {}, row.where)
        labels, options = both.texts("label"), both.texts("text")
    if len(labels) != len(options):
        raise UserError(
            f"Expected as many labels as texts in the choices of {row.where} but got "
            f"{len(labels)} and {len(options)}; correct it"
        )
    if key not in labels:
        raise row.no_option(key, labels)
    return Question(row.text("question"), options, labels.index(key))


Parts = Mapping[str, tuple[Question, ...]]
"""Part -> its questions; parts that there are none of are left out."""


def known_set(name: str, root: str | None) -> TextSet:
    """Return the set of a name: a registered one, or a folder of one's own below ``root``.

    Raises:
        UserError: there is neither.
    """
    if name in TEXT_SETS:
        return TEXT_SETS[name]
    if root is not None:
        there = require_folder(root)
        if (there / name).is_dir():
            return TextSet(name, "a folder of json lines", own)
        folders = [path.name for path in there.iterdir() if path.is_dir()]
        raise unknown_name(f"text set of {there}", name, sorted({*TEXT_SETS, *folders}))
    raise unknown_name("benchmark.sets", name, TEXT_SETS)


def load_parts(made: TextSet, root: str | None, seed: int, cache_dir: str | None = None) -> Parts:
    """Read every part of a set: from json lines below ``root``, or from the hub without one.

    Args:
        made: the set.
        root: the folder of all sets; None for the hub.
        seed: what the order of options is drawn with, together with the set's name and the split.
        cache_dir: where what is downloaded is kept; None for the place of ``datasets``.

    Raises:
        UserError: data is not there, cannot be read, or has other columns than the set is
            published with; or a question has fewer than two options, more than there are letters,
            or an answer that is no option.
    """
    parts = {}
    for part, split in made.splits.items():
        if root is None:
            rows = _from_hub(made, split, cache_dir)
        else:
            file = require_folder(root) / made.name / f"{split}.jsonl"
            if not file.is_file():
                if (part != TRAIN and made.name not in TEXT_SETS) or part == VAL:
                    continue  # drawn from the train part, or done without
                raise UserError(
                    f"Expected {file} to hold the {part} part of {made.name!r} but there is no "
                    "such file; add it, or leave benchmark.root out to read it from the hub"
                )
            rows = _lines(file)
        generator = numpy_generator(seed, "options", made.name, split)
        parts[part] = tuple(_checked(made.read(row, generator), row) for row in rows)
    return parts


def _checked(made: Question, row: Row) -> Question:
    count = len(made.options)
    if not _LEAST <= count <= len(LETTERS):
        raise UserError(
            f"Expected {_LEAST} to {len(LETTERS)} options, as many as there are letters, in "
            f"{row.where} but got {count}; leave the row out"
        )
    if not made.question:
        raise UserError(f"Expected a question in {row.where} but it is empty; leave the row out")
    return made


def _lines(file: Path) -> Iterator[Row]:
    """Yield the rows of a file of json lines; empty lines are passed over."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"line {number} of {file}"
                    yield Row(_object(line, where), where)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read {file} ({type(error).__name__}); expected json lines in UTF-8"
        ) from error


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"Expected {where} to be a JSON object but it is no JSON ({error.msg}); correct it"
        ) from error
    if not isinstance(values, Mapping):
        raise UserError(
            f"Expected {where} to be a JSON object but got {type(values).__name__}; give "
            '{"column": value, ...}'
        )
    return values


def _from_hub(made: TextSet, split: str, cache_dir: str | None) -> Iterator[Row]:
    from cl_lora.benchmarks.sources.hub import datasets_library

    datasets = datasets_library("a set of questions without benchmark.root")
    try:
        table = datasets.load_dataset(made.path, name=made.config, split=split, cache_dir=cache_dir)
    # What goes wrong in there ranges from an unknown split to the network; the library has no
    # common base class for it, and its messages name the cause.
    except Exception as error:
        raise UserError(
            f"Cannot load the {split} split of {made.path} with datasets: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; give local json lines with "
            "benchmark.root=DIR, or check the network"
        ) from error
    for number, values in enumerate(table):
        yield Row(values, f"row {number} of the {split} split of {made.path}")


def there(made: TextSet, root: str | None, cache_dir: str | None = None) -> str | None:
    """Say where a set is, or None if it is not there; downloads nothing."""
    if root is not None:
        folder = Path(root).expanduser() / made.name
        return str(folder) if folder.is_dir() else None
    from cl_lora.benchmarks.sources.hub import datasets_library

    datasets = datasets_library("a set of questions without benchmark.root")
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
    cached = cache / str(made.path).replace("/", "___")
    return f"downloaded to {cached}" if cached.is_dir() else None
