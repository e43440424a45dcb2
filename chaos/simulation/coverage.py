"""How often each branch of the engine was met: counters put into its source when it is imported.

A branch is the body of a function, of an `if` or its `else`, of a loop, of an exception handler. Each is told as
`module:line what`, so that what was never met can be looked up. Counting costs an addition to a list.
"""

from __future__ import annotations

import ast
from typing import Final

MODULES: Final = tuple(
    f"raftq.replication.{name}"
    for name in ("engine", "cycle", "changes", "membership", "transfer", "journal", "roster", "progress", "pending")
)

#: How often the branch of this number was met.
met: list[int] = []
#: What the branch of this number is.
branches: list[str] = []


def count(name: str, tree: ast.Module) -> ast.Module:
    """A `rewriting.TreeTransformer`."""
    module = name.rpartition(".")[2]
    _Counter(module).visit(tree)
    after = next(at for at, node in enumerate(tree.body) if not _first(node))
    tree.body.insert(after, ast.parse(f"from {__name__} import met as __met__").body[0])
    return tree


def counted() -> dict[str, int]:
    """Since the last `begin`."""
    return dict(zip(branches, met, strict=True))


def begin() -> None:
    met[:] = [0] * len(met)


def _first(node: ast.stmt) -> bool:
    """It has to stand before everything else: the docstring, and what is imported from the future."""
    return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or (
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
    )


class _Counter(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self._module = module
        self._within: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._within.append(node.name)
        self.generic_visit(node)
        docstring = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        self._count(node.body, node.lineno, "", 1 if docstring else 0)
        self._within.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        self.generic_visit(node)
        if not self._within:
            return
        what = f"if {ast.unparse(node.test)}"
        elif_follows = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
        self._count(node.body, node.lineno, what)
        if node.orelse and not elif_follows:
            self._count(node.orelse, node.orelse[0].lineno, f"else of {what}")

    def visit_For(self, node: ast.For) -> None:
        self.generic_visit(node)
        self._count(node.body, node.lineno, f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}")

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)
        self._count(node.body, node.lineno, f"while {ast.unparse(node.test)}")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.generic_visit(node)
        self._count(node.body, node.lineno, f"except {ast.unparse(node.type) if node.type else ''}")

    def _count(self, body: list[ast.stmt], line: int, what: str, at: int = 0) -> None:
        place = ".".join(self._within)
        branches.append(f"{self._module}:{line} {place} {what}".rstrip())
        met.append(0)
        body.insert(at, ast.parse(f"__met__[{len(met) - 1}] += 1").body[0])
