"""Makes mutants of Python files: small changes of the code, by mutmut's operators.

Left out is what no test of numbers or files could see, or should: type hints, docstrings, words
for people (errors, warnings, any text with a blank), ``strict=`` of zip, ``encoding=`` and a
dataclass's ``frozen=`` and ``eq=`` (guards that only a mistake in this code, or another locale,
would wake), and a string's two changes of
case beside its other change. Outside functions (tables, defaults, decorators) only numbers, truth
values and operators change, because everything else there would fail when the module is imported.

mutmut itself leaves out every decorated function, which here are the merge methods, rules and
metrics; its operators know no such limit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

GUARDS = frozenset({"strict", "encoding", "stacklevel", "match", "frozen", "eq"})
FOR_PEOPLE = frozenset({"UserError", "warn", "info", "warning", "debug", "Progress"})
CHECKS = frozenset({"isinstance", "len"})
PASSING = (cst.Call, cst.Assign, cst.AnnAssign)
HARMLESS_OUTSIDE = (
    cst.BaseNumber,
    cst.Name,
    cst.BinaryOperation,
    cst.UnaryOperation,
    cst.BooleanOperation,
    cst.ComparisonTarget,
)
MUTABLE = (
    cst.BaseExpression,
    cst.BaseSmallStatement,
    cst.BaseCompOp,
    cst.ComparisonTarget,
    cst.Match,
)
SIMPLE = (cst.SimpleStatementLine, cst.Decorator)
COMPOUND = (cst.BaseCompoundStatement, cst.ExceptHandler)


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one file."""

    path: str
    where: str
    """Function or class, with its outer ones; empty for the module."""
    lines: tuple[int, int]
    """Of the statement that changes; of a compound one only its head."""
    around: tuple[int, int]
    """Of the outermost function or class."""
    before: str
    after: str
    kind: str
    """``passing`` for a call's argument or an assignment that is dropped, else ``logic``."""
    nth: int
    """Which of the equal changes in this function."""
    span: tuple[int, int]
    """Of the text that changes, in characters from the start of the file."""

    def order(self, seed: int) -> str:
        """Return a key that draws this mutant or not: other code does not change the draw."""
        what = (seed, self.path, self.where, self.before, self.after, self.nth)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def applied(self, source: str) -> str:
        """Return the file's text with the change."""
        start, stop = self.span
        return source[:start] + self.after + source[stop:]

    def undone(self, changed: str) -> str:
        """Return the file's text from that with the change."""
        start = self.span[0]
        return changed[:start] + self.before + changed[start + len(self.after) :]


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self, path: str, source: str, module: cst.Module) -> None:
        super().__init__()
        self.path = path
        self.module = module
        self.source = source
        lengths = [len(line) for line in source.splitlines(keepends=True)]
        self.starts = [0]
        for length in lengths:
            self.starts.append(self.starts[-1] + length)
        self.names: list[cst.FunctionDef | cst.ClassDef] = []
        self.heads: list[tuple[int, int]] = [(1, 1)]
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.found: list[Mutant] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation) or self._is_text(node):
            return False
        if isinstance(node, SIMPLE + COMPOUND):
            self.heads.append(self._head(node))
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.append(node)
        if isinstance(node, MUTABLE) and (
            isinstance(node, HARMLESS_OUTSIDE) or self._in_body(node)
        ):
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    self._add(node, list(operator(node)))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, SIMPLE + COMPOUND):
            self.heads.pop()
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.pop()

    def _add(self, node: cst.CSTNode, changed: list[cst.CSTNode]) -> None:
        place = self._range(node)
        if place is None or not changed:
            return
        if isinstance(node, cst.BaseString):
            changed = changed[:1]
        start = self.starts[place.start.line - 1] + place.start.column
        stop = self.starts[place.end.line - 1] + place.end.column
        before = self.source[start:stop]
        where = ".".join(node.name.value for node in self.names)
        outer = self._range(self.names[0]) if self.names else None
        for other in changed:
            after = self.module.code_for_node(other)
            if after == before or not before.strip() or self._same_but_guards(node, other):
                continue
            key = (where, before, after)
            self.found.append(
                Mutant(
                    path=self.path,
                    where=where,
                    lines=self.heads[-1],
                    around=(outer.start.line, outer.end.line)
                    if outer
                    else (1, len(self.starts) - 1),
                    before=before,
                    after=after,
                    kind="passing" if isinstance(node, PASSING) else "logic",
                    nth=self.seen[key],
                    span=(start, stop),
                )
            )
            self.seen[key] += 1

    def _same_but_guards(self, node: cst.CSTNode, other: cst.CSTNode) -> bool:
        """Return whether only a guard was taken from a call: ``zip(a, b, strict=True)``."""
        if not (isinstance(node, cst.Call) and isinstance(other, cst.Call)):
            return False
        mine, theirs = (
            [
                self.module.code_for_node(arg.value)
                for arg in call.args
                if arg.keyword is None or arg.keyword.value not in GUARDS
            ]
            for call in (node, other)
        )
        return mine == theirs and len(mine) < len(node.args)

    def _range(self, node: cst.CSTNode) -> CodeRange | None:
        return self.get_metadata(PositionProvider, node, None)

    def _head(self, node: cst.CSTNode) -> tuple[int, int]:
        place = self._range(node)
        assert place is not None
        body = getattr(node, "body", None)
        inside = self._range(body) if isinstance(body, cst.BaseSuite) else None
        last = max(place.start.line, inside.start.line - 1) if inside else place.end.line
        return place.start.line, last

    def _in_body(self, node: cst.CSTNode) -> bool:
        """Return whether a node belongs to a function's body, not to its head or decorators."""
        above: cst.CSTNode | None = node
        while above is not None and not isinstance(above, cst.Module):
            parent = self.get_metadata(ParentNodeProvider, above, None)
            if isinstance(parent, cst.FunctionDef) and above is parent.body:
                return True
            above = parent
        return False

    def _is_text(self, node: cst.CSTNode) -> bool:
        """Return whether a node is written for people, or is a guard that is left out."""
        if isinstance(node, cst.Raise):
            return True
        if isinstance(node, cst.Call):
            name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
            return isinstance(name, cst.Name) and name.value in FOR_PEOPLE | CHECKS
        if isinstance(node, cst.Arg):
            return node.keyword is not None and node.keyword.value in GUARDS
        parent = self.get_metadata(ParentNodeProvider, node, None)
        return isinstance(node, cst.SimpleString) and (
            isinstance(parent, cst.Expr) or " " in node.value
        )


def mutants_of(path: Path, root: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    source = path.read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    finder = _Finder(path.relative_to(root).as_posix(), source, wrapper.module)
    wrapper.visit(finder)
    yield from finder.found


def compiles(mutant: Mutant, source: str) -> bool:
    """Return whether a change gives Python at all (an operator does not know its brackets)."""
    try:
        compile(mutant.applied(source), mutant.path, "exec")
    except SyntaxError:
        return False
    return True
