"""Stages: when adapters are merged, which, and what is scored then; a protocol makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from cl_lora.benchmarks.draw import ALL, Shots
from cl_lora.evaluation.scores import UNTRAINED
from cl_lora.run_folder.records import StageRecord as Stage
from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.ranges import at_most
from cl_lora.support.registry import check_free, look_up

__all__ = [
    "PROTOCOLS",
    "Outline",
    "Protocol",
    "Stage",
    "Subsets",
    "continued",
    "get_protocol",
    "register_protocol",
    "shots_of",
    "untrained",
]


@dataclass(frozen=True)
class Subsets:
    """Which subsets of the bank a run merges.

    Attributes:
        pairs: whether every pair.
        triples_with: two names: every triple of these two and another; None for no triples.
        all_subsets: every subset of two up to so many; None for none but the above.
    """

    pairs: bool = True
    triples_with: tuple[str, ...] | None = None
    all_subsets: int | None = at_most(1000, None)

    def __post_init__(self) -> None:
        given = self.triples_with
        if given is not None and (len(given) != 2 or len(set(given)) != 2):
            raise UserError(
                "Expected subsets.triples_with to be two different names, which every triple holds "
                f"beside another, but got {shown(list(given))}; name two experiences"
            )
        if self.all_subsets is not None and self.all_subsets < 2:
            raise UserError(
                "Expected subsets.all_subsets to be the largest number of merged adapters, at "
                f"least 2, but got {self.all_subsets}; raise it"
            )
        if not (self.pairs or given or self.all_subsets):
            raise UserError("subsets merges nothing; set subsets.pairs=true")


@dataclass(frozen=True)
class Outline:
    """What a protocol knows of a stream.

    Attributes:
        names: of the experiences, in order.
        downstream: indices of the experiences that are held out; empty where none is.
        pool: for each experience the mean number of train samples per stratum (class) has.
        shots: K, samples per class of the support sets, or ``"all"``.
        draws: how many support sets are drawn for each K.
        subsets: which subsets of the bank are merged.
        grows: whether labels come with the experiences: one that has not come cannot be scored.
        forward_transfer: whether experiences are scored before their turn too, and everything
            before any training, as this measure needs.
    """

    names: Sequence[str]
    downstream: tuple[int, ...] = ()
    pool: Sequence[float] = ()
    shots: tuple[Shots, ...] = ()
    draws: int = 1
    subsets: Subsets = field(default_factory=Subsets)
    grows: bool = False
    forward_transfer: bool = True

    @property
    def ahead(self) -> bool:
        """Whether experiences are scored before their turn: asked for, and their labels known."""
        return self.forward_transfer and not self.grows

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices of the experiences."""
        return tuple(range(len(self.names)))


MakeStages = Callable[[Outline], tuple[Stage, ...]]
"""What is known of a stream -> the stages after training, numbered from 0."""


@dataclass(frozen=True)
class Protocol:
    """How a bank is merged over the course of a run.

    Attributes:
        name: the name it is chosen by.
        summary: one sentence.
        ordered: whether stages follow one another in time, stage t after experience t: forgetting
            and transfer are measured only then.
        make: makes the stages after training.
        few_shot: whether it has stages with a support set of K samples per class: ``shots`` and
            ``draws`` are for those.
        subsets: whether the option ``subsets`` says what it merges.
        own_heads: whether every experience must keep a head of its own.
        untrained: whether there is a stage before training, at which everything is scored.
        extends: whether later commands may add stages to a folder.
        counts: whether it is recorded how many numbers each arm and row needs to serve.
    """

    name: str
    summary: str
    ordered: bool
    make: MakeStages
    few_shot: bool = False
    subsets: bool = False
    own_heads: bool = False
    untrained: bool = True
    extends: bool = False
    counts: bool = False

    def stages(self, outline: Outline) -> tuple[Stage, ...]:
        """Return every stage of a stream, the untrained one first where there is one.

        Raises:
            UserError: if the protocol makes no stage, or one that cannot be served or scored.
        """
        count = len(outline.names)
        made = self.make(outline)
        if not made:
            raise UserError(
                f"The protocol {self.name!r} makes no stage of {count} experiences; choose "
                "another protocol, or a stream with more experiences"
            )
        for index, stage in enumerate(made):
            self._check(stage, index, outline)
        # Before any training no label is known where labels come with the experiences.
        scored_before = self.untrained and outline.ahead
        return (untrained(outline.names), *made) if scored_before else made

    def _check(self, stage: Stage, index: int, outline: Outline) -> None:
        experiences, early = len(outline.names), not set(stage.evaluated) <= set(stage.members)
        named = (*stage.members, *stage.evaluated, *stage.support)
        problem = None
        if stage.index != index:
            problem = f"has index {stage.index}, expected {index}"
        elif not stage.members or not stage.evaluated:
            problem = "merges or scores nothing"
        elif not set(named) <= set(range(experiences)):
            problem = f"names an experience outside 0..{experiences - 1}"
        elif outline.grows and early:
            problem = "scores an experience whose labels have not come yet"
        elif not outline.forward_transfer and early:
            problem = (
                "scores an experience before its turn, which forward_transfer=false leaves out"
            )
        if problem:
            raise UserError(
                f"Stage {stage.name!r} of the protocol {self.name!r} {problem}; correct the "
                "protocol"
            )


def untrained(names: Sequence[str]) -> Stage:
    """Return the stage before any training, at which every experience is scored."""
    return Stage(UNTRAINED, "untrained", (), tuple(range(len(names))), ())


def continued(there: Sequence[Stage], asked: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of earlier commands and those of this one, each once.

    A stage that is there keeps its index, by which its scores are known; a new one gets the next.
    """
    known = {_what(stage): stage for stage in there}
    following = max((stage.index for stage in there), default=UNTRAINED) + 1
    for stage in asked:
        if _what(stage) not in known:
            index = following if there else stage.index
            known[_what(stage)] = replace(stage, index=index)
            following += 1
    return tuple(sorted(known.values(), key=lambda stage: stage.index))


def _what(stage: Stage) -> tuple[object, ...]:
    return (stage.name, stage.members, stage.evaluated, stage.support, stage.draw)


PROTOCOLS: dict[str, Protocol] = {}
"""Every registered protocol by name."""


def register_protocol(
    name: str,
    *,
    summary: str,
    ordered: bool,
    few_shot: bool = False,
    subsets: bool = False,
    own_heads: bool = False,
    untrained: bool = True,
    extends: bool = False,
    counts: bool = False,
) -> Callable[[MakeStages], MakeStages]:
    """Register the decorated ``make(outline) -> stages`` as a protocol; see :class:`Protocol`.

    Raises:
        UserError: if the name is taken.
    """

    def decorate(make: MakeStages) -> MakeStages:
        taken = PROTOCOLS.get(name)
        check_free("protocol", name, taken.make if taken else None, make)
        PROTOCOLS[name] = Protocol(
            name, summary, ordered, make, few_shot, subsets, own_heads, untrained, extends, counts
        )
        return make

    return decorate


def get_protocol(name: str) -> Protocol:
    """Return the protocol called ``name``.

    Raises:
        UserError: if there is none, naming the nearest known.
    """
    return look_up("protocol", PROTOCOLS, name)


@register_protocol(
    "prefixes",
    summary="after experience t the adapters 0..t are merged and every experience is scored that "
    "can be",
    ordered=True,
)
def prefixes(outline: Outline) -> tuple[Stage, ...]:
    """Return a stage after each experience.

    All experiences are scored, also those to come; those seen so far where labels come with the
    experiences, or forward transfer is not asked for.
    """
    everything = outline.indices

    def stage(t: int, name: str) -> Stage:
        seen = everything[: t + 1]
        return Stage(t, name, seen, everything if outline.ahead else seen, seen)

    return tuple(stage(t, name) for t, name in enumerate(outline.names))


@register_protocol(
    "all_at_once",
    summary="everything is trained first, then all adapters are merged once and every task scored",
    ordered=False,
    untrained=False,
    counts=True,
)
def all_at_once(outline: Outline) -> tuple[Stage, ...]:
    """Return the one stage that merges everything (Jiang et al. 2023)."""
    everything = outline.indices
    return (Stage(0, "all", everything, everything, everything),)


@register_protocol(
    "shots",
    summary="the adapters of all upstream experiences are adapted to a downstream one from K "
    "samples per class",
    ordered=False,
    few_shot=True,
    own_heads=True,
    untrained=False,  # heads start at zero: there is nothing that could be scored
    extends=True,
)
def shots(outline: Outline) -> tuple[Stage, ...]:
    """Return a stage for each downstream experience, K and draw.

    Where no experience is downstream each is held out in turn.
    """
    rounds = outline.downstream or outline.indices
    # Held out are all downstream ones: no adapter of one is a member for another.
    upstream = [i for i in outline.indices if i not in outline.downstream]
    made = (
        stage
        for held in rounds
        for stage in _adaptations(outline, held, tuple(i for i in upstream if i != held))
    )
    return _numbered(made)


@register_protocol(
    "few_shot_stream",
    summary="each task first adapts from K samples per class what was learned before it, then its "
    "own adapter joins the bank",
    ordered=True,
    few_shot=True,
    own_heads=True,
    untrained=False,
    extends=True,
)
def few_shot_stream(outline: Outline) -> tuple[Stage, ...]:
    """Return for each task its adaptations from the tasks before, then the merge of all so far."""
    everything = outline.indices

    def make() -> Iterator[Stage]:
        for t, name in enumerate(outline.names):
            if t:
                yield from _adaptations(outline, t, everything[:t])
            so_far = everything[: t + 1]
            yield Stage(0, name, so_far, so_far, ())

    return _numbered(make())


ALONE = "alone"
"""The group of the stages at which nothing is merged: each adapter by itself."""

_GROUPS = {2: "pairs", 3: "triples"}


@register_protocol(
    "subsets",
    summary="subsets of the bank are merged, pairs, triples or more, and their own tasks scored",
    ordered=False,
    subsets=True,
    own_heads=True,
    untrained=False,
    extends=True,
)
def subsets(outline: Outline) -> tuple[Stage, ...]:
    """Return a stage for each adapter alone, then one for each subset that is merged.

    Each scores the tasks of its members (Kesim and Helli 2024).

    Raises:
        UserError: if a triple is asked for with an experience that is not there.
    """
    return _numbered(
        Stage(
            0,
            " + ".join(outline.names[m] for m in members),
            members,
            members,
            members,
            group=ALONE if len(members) == 1 else _GROUPS.get(len(members), f"of {len(members)}"),
        )
        for members in _subsets(outline)
    )


def _subsets(outline: Outline) -> list[tuple[int, ...]]:
    """Return the members of every subset, the smallest first; a subset that occurs twice once."""
    asked, names = outline.subsets, outline.names
    found: list[tuple[int, ...]] = [(t,) for t in outline.indices]
    if asked.pairs:
        found += combinations(outline.indices, 2)
    if asked.triples_with is not None:
        for name in asked.triples_with:
            if name not in names:
                raise unknown_name("subsets.triples_with", name, names)
        both = {names.index(name) for name in asked.triples_with}
        found += [tuple(sorted({*both, t})) for t in outline.indices if t not in both]
    for size in range(2, (asked.all_subsets or 1) + 1):
        found += combinations(outline.indices, size)
    return sorted(dict.fromkeys(found), key=lambda members: (len(members), members))


def _adaptations(outline: Outline, held: int, members: tuple[int, ...]) -> Iterator[Stage]:
    for k in outline.shots:
        # Without samples, or with all of them, there is one support set.
        for draw in range(1 if k in (0, ALL) else outline.draws):
            x = outline.pool[held] if k == ALL else float(k)
            support = () if k == 0 else (held,)
            yield Stage(0, f"K={k}", members, (held,), support, x, draw)


def _numbered(stages: Iterator[Stage]) -> tuple[Stage, ...]:
    return tuple(replace(stage, index=index) for index, stage in enumerate(stages))


def shots_of(stage: Stage) -> Shots | None:
    """Return K of a few-shot stage, 0 of one without samples; None of any other stage."""
    if not stage.few_shot or stage.x is None:
        return None
    return ALL if stage.pool else int(stage.x)
