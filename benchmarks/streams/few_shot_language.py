"""Multiple choice in words: several sets of questions, each a task; one is held out, or each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np
import numpy.typing as npt

from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.sources.settings import PartsConfig, require_names, require_text
from cl_lora.benchmarks.sources.text_sets import (
    TEST,
    TEXT_SETS,
    TRAIN,
    VAL,
    Parts,
    Question,
    known_set,
    load_parts,
    there,
)
from cl_lora.benchmarks.sources.tree import require_folder
from cl_lora.benchmarks.splits import (
    Indices,
    Splits,
    cap_per_class,
    hold_out_validation,
    stratified_split,
)
from cl_lora.benchmarks.streams.held_out import held_out, stream_order
from cl_lora.support.errors import UserError
from cl_lora.support.files import digest
from cl_lora.support.seeding import numpy_generator
from cl_lora.tasks import CHOICE, LETTERS, Task

PROMPT = "{context}\n\nQuestion: {question}\nOptions:\n{options}\nAnswer:"
OPTION = "{letter}. {text}"


@dataclass(frozen=True)
class Prompt:
    """How a question is put to a language model.

    Attributes:
        text: with ``{question}``, ``{options}`` and, where passages are told, ``{context}``.
        option: a line of the options, with ``{letter}`` and ``{text}``.
    """

    text: str = PROMPT
    option: str = OPTION

    def __post_init__(self) -> None:
        _require_fields("prompt", self.text, ("question", "options"), ("context",))
        _require_fields("option", self.option, ("letter", "text"))

    def parts(self, question: Question) -> tuple[str, str, str]:
        """Return what stands before the passage, the passage, and what stands after it.

        Without a passage nothing stands before it, nor does white space where it would be.
        """
        options = "\n".join(
            self.option.format(letter=letter, text=text)
            for letter, text in zip(LETTERS, question.options, strict=False)
        )
        before, passage, after = self.text.partition("{context}")
        before, after = (
            part.format(question=question.question, options=options) for part in (before, after)
        )
        if not (passage and question.context):
            return "", "", (before + after).strip()
        return before, question.context, after


def _require_fields(
    name: str, template: str, needed: Sequence[str], allowed: Sequence[str] = ()
) -> None:
    """Raise ``UserError`` unless a template has each field once that it must have."""
    try:
        given = [field for _, field, form, _ in Formatter().parse(template) if field is not None]
        # What follows a colon or an exclamation mark in a field is not asked for either.
        plain = all(f"{{{field}}}" in template for field in given)
    except ValueError:
        given, plain = [], False
    counts = Counter(given)
    right = all(counts[field] == 1 for field in needed)
    right = right and all(counts[field] <= 1 for field in allowed)
    if not (plain and right and set(given) <= {*needed, *allowed}):
        may = f", and may have {', '.join(f'{{{f}}}' for f in allowed)}" if allowed else ""
        raise UserError(
            f"Expected benchmark.{name} to have {' and '.join(f'{{{f}}}' for f in needed)} "
            f"once{may}, but got {template!r}; correct it"
        )


@benchmark_kind("few_shot_language", texts=True)
@dataclass(frozen=True, kw_only=True)
class FewShotLanguageConfig(PartsConfig):
    """Sets of multiple-choice questions, each a task (Asadi et al. 2024, the language half).

    A set is one of ``TEXT_SETS``, or a folder of one's own. A published set keeps its parts; of a
    folder without a test part, a share of each answer's questions is drawn. The validation part is
    the published one, or drawn from the train part.

    Attributes:
        root: the folder of all sets, json lines ``root/NAME/SPLIT.jsonl``; None for the hub.
        sets: names, in stream order; None for all that are known by name.
        upstream: the sets that adapters are trained on; None for all others.
        downstream: the set that is held out; None for a run that holds out each in turn.
        prompt: how a question is put; see :class:`Prompt`.
        option: how an option is put.
        cache_dir: where sets of the hub are kept; None for the place of ``datasets``.
    """

    name: str = "few_shot_language"
    root: str | None = None
    sets: tuple[str, ...] | None = None
    upstream: tuple[str, ...] | None = None
    downstream: str | None = "arc_challenge"
    prompt: str = PROMPT
    option: str = OPTION

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text("root", self.root)
        require_names("sets", self.sets)
        require_names("upstream", self.upstream)
        require_text("downstream", self.downstream)
        Prompt(self.prompt, self.option)
        self._order()

    def check(self) -> None:
        """Read every set; downloads those of the hub that are not there."""
        self._loaded()

    def found(self) -> str | None:
        """Say where the sets are, or None if one is not there; downloads nothing."""
        if self.root is not None and not Path(self.root).expanduser().is_dir():
            return None
        places = [there(known_set(n, self.root), self.root, self.cache_dir) for n in self._order()]
        return "; ".join(place for place in places if place) if all(places) else None

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark; ``image_size`` means nothing to texts."""
        prompt = Prompt(self.prompt, self.option)
        made = [self._experience(name, parts, prompt) for name, parts in self._loaded()]
        content = digest(
            [e.inputs.tolist() for e in made],
            [list(e.task.labels) for e in made],
            *(
                np.ascontiguousarray(part, dtype="<i8").tobytes()
                for e in made
                for part in (e.targets, e.train, e.val, e.test)
            ),
        )
        return held_out(self.name, made, content, downstream=self.downstream is not None)

    def _order(self) -> tuple[str, ...]:
        return stream_order(self.sets or tuple(TEXT_SETS), self.upstream, self.downstream)

    def _loaded(self) -> list[tuple[str, Parts]]:
        if self.root is not None:
            require_folder(self.root)
        return [
            (
                name,
                load_parts(known_set(name, self.root), self.root, self.split_seed, self.cache_dir),
            )
            for name in self._order()
        ]

    def _experience(self, name: str, parts: Parts, prompt: Prompt) -> Experience:
        questions = [question for part in parts.values() for question in part]
        ends = np.cumsum([len(part) for part in parts.values()])
        given: dict[str, Indices] = {
            part: np.arange(end - len(parts[part]), end, dtype=np.int64)
            for part, end in zip(parts, ends, strict=True)
        }
        targets = np.array([question.answer for question in questions], dtype=np.int64)
        counts = np.array([len(question.options) for question in questions], dtype=np.int64)
        letters = LETTERS[: int(counts.max(initial=2))]
        split = self._split(name, given, targets, counts, letters)
        return Experience(
            name,
            Task(name, CHOICE, letters),
            text_array([prompt.parts(question) for question in questions]),
            targets,
            split.train,
            split.val,
            split.test,
        )

    def _split(
        self,
        name: str,
        given: dict[str, Indices],
        targets: Indices,
        counts: Indices,
        letters: tuple[str, ...],
    ) -> Splits:
        """Return the parts of a set, those that are missing drawn, then capped.

        Questions with another number of options than most are in no train part: the right letters
        of a support set are balanced, and theirs would hardly occur.
        """
        settings, seed = self.splitting, self.split_seed
        train, val = given[TRAIN], given.get(VAL)
        if TEST in given:
            test = given[TEST]
        else:
            present = np.unique(targets[train])
            first, second = stratified_split(
                np.searchsorted(present, targets[train]),
                settings.test_fraction,
                numpy_generator(seed, "split", name),
                domain=name,
                classes=[letters[i] for i in present],
            )
            train, test = train[first], train[second]
        if len(train):
            train = train[counts[train] == np.bincount(counts[train]).argmax()]
        train, test = (
            cap_per_class(part, targets[part], cap, numpy_generator(seed, "cap", side, name))
            for side, part, cap in (
                ("train", train, settings.samples_per_class),
                ("test", test, settings.test_samples_per_class),
            )
        )
        if val is None:
            present = np.unique(targets[train])
            train, val = hold_out_validation(
                train,
                np.searchsorted(present, targets[train]),
                settings.val_fraction,
                seed,
                domain=name,
                classes=[letters[i] for i in present],
            )
        return Splits(train, val, test)


def text_array(parts: Sequence[tuple[str, str, str]]) -> npt.NDArray[np.object_]:
    """Return texts as inputs of an experience: (N, 3) of ``str``, before, passage and after."""
    made = np.empty((len(parts), 3), dtype=object)
    for row, texts in zip(made, parts, strict=True):
        row[:] = texts
    return made
