"""The changes that mutation testing makes: where they are, and the source that they give, by the operators of cosmic-ray."""

import ast
import functools
import hashlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_item import MutationSpec, WorkItem

FunctionKey = tuple[str, int]
"""Qualified name and first line."""


def job_name(mutation: MutationSpec) -> str:
    """:return: a name that stays the same from session to session"""
    return f"{mutation.module_path}:{mutation.operator_name.split('/')[1]}:{mutation.occurrence}"


def order(seed: int, job: str) -> str:
    """:return: what to sort by for an order that is random and always the same"""
    return hashlib.sha256(f"{seed} {job}".encode()).hexdigest()


def find_mutants(root: Path, module: str, patterns: list[str], constants: bool) -> Iterator[WorkItem]:
    """
    Find all changes of a file.

    :param root: of the repository
    :param module: path below it
    :param patterns: names of operators, as regular expressions
    :param constants: whether constants and defaults are changed too, which are choices, not calculations
    :return: one for each; annotations are left as they are
    """
    source = (root / module).read_text()
    calculates = Places.of(source).functions
    skipped = annotation_spans(ast.parse(source))
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if not any(re.fullmatch(pattern, name.split("/")[1]) for pattern in patterns):
            continue
        operator = get_operator(name)()
        positions = ((start, end) for node in nodes for start, end in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            if (constants or start[0] in calculates) and not any(first <= start < last for first, last in skipped):
                mutation = MutationSpec(Path(module), name, occurrence, start, end)
                yield WorkItem.single(job_name(mutation), mutation)


@functools.lru_cache
def _parsed(source: str) -> bytes:
    return pickle.dumps(get_ast(source))


def mutate(source: str, mutation: MutationSpec) -> str:
    """
    Make the change.

    :param source: of the file
    :param mutation: what to change
    :return: the changed source
    """
    visitor = MutationVisitor(mutation.occurrence, get_operator(mutation.operator_name)())
    # cosmic-ray changes the tree itself, and to copy it is quicker than to parse the file again
    changed = visitor.walk(pickle.loads(_parsed(source)))
    assert visitor.mutation_applied
    code: str = changed.get_code()
    return code


def annotation_spans(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """:return: where annotations begin and end, line and column"""
    spans = []
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.expr):
                assert annotation.end_lineno is not None and annotation.end_col_offset is not None
                start = annotation.lineno, annotation.col_offset
                spans.append((start, (annotation.end_lineno, annotation.end_col_offset)))
    return spans


@dataclass(frozen=True)
class Places:
    """What stands on the lines of a file."""

    statements: dict[int, range]
    """the lines of the statement on a line, of compound ones those of the head"""
    functions: dict[int, FunctionKey]
    """the outermost function whose body is on a line; what runs at import has none"""

    @classmethod
    def of(cls, source: str) -> "Places":
        """
        Read a file.

        :param source: of the file
        :return: its lines
        """
        statements: dict[int, range] = {}
        for node in ast.walk(ast.parse(source)):  # parents come before children, which overwrite them
            if isinstance(node, ast.stmt):
                body = getattr(node, "body", None)
                last = body[0].lineno - 1 if body else node.end_lineno
                assert last is not None
                lines = range(node.lineno, max(last, node.lineno) + 1)
                statements |= dict.fromkeys(lines, lines)
        return cls(statements, dict(_function_lines(ast.parse(source).body, "")))


def _function_lines(body: list[ast.stmt], prefix: str) -> Iterator[tuple[int, FunctionKey]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _function_lines(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            for line in range(node.body[0].lineno, node.end_lineno + 1):
                yield line, (f"{prefix}{node.name}", first)


def find_code(code: CodeType, key: FunctionKey) -> CodeType | None:
    """
    Find the code of a function.

    :param code: of the module
    :param key: which function
    :return: its code
    """
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if (constant.co_qualname, constant.co_firstlineno) == key:
                return constant
            if (found := find_code(constant, key)) is not None:
                return found
    return None


def describe(root: Path, mutation: MutationSpec) -> dict[str, Any]:
    """
    Say what a mutant is.

    :param root: of the repository
    :param mutation: the mutant
    :return: ``file``, ``line``, ``operator``, ``was`` and ``became``
    """
    source = (root / mutation.module_path).read_text()
    line = mutation.start_pos[0]
    old, new = source.splitlines(), mutate(source, mutation).splitlines()
    return {
        "file": str(mutation.module_path),
        "line": line,
        "operator": mutation.operator_name.split("/")[1],
        "was": old[line - 1].strip(),
        "became": new[line - 1].strip(),
    }
