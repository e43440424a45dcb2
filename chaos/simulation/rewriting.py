"""Other source for some modules: what an import hook compiles in the place of what the file says.

Two kinds of change: of the text (a mutation) and then of the tree (counters of branches). Invariant: a module is never
changed after it was imported; asking for that raises.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType

#: Of a module's source; raises when it does not fit any more.
SourceTransformer = Callable[[str], str]
#: Of its syntax tree, given the module's name.
TreeTransformer = Callable[[str, ast.Module], ast.Module]


def install(sources: Mapping[str, SourceTransformer], trees: Mapping[str, TreeTransformer] | None = None) -> None:
    """From now on, in this process, modules of these names are made of the changed source."""
    changed = {*sources, *(trees or {})}
    imported = sorted(name for name in changed if name in sys.modules)
    if imported:
        raise RuntimeError(f"{', '.join(imported)} is imported already: change its source before that")
    sys.meta_path.insert(0, _Finder(dict(sources), dict(trees or {})))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, sources: dict[str, SourceTransformer], trees: dict[str, TreeTransformer]) -> None:
        self._sources, self._trees = sources, trees

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._sources and fullname not in self._trees:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._sources.get(fullname), self._trees.get(fullname))
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: SourceTransformer | None, tree: TreeTransformer | None) -> None:
        super().__init__(name, path)
        self._source, self._tree = source, tree

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache of bytecode, nor into one."""
        text = self.get_source(fullname)
        assert text is not None
        if self._source is not None:
            text = self._source(text)
        tree = ast.parse(text, self.path)
        if self._tree is not None:
            tree = ast.fix_missing_locations(self._tree(fullname, tree))
        code = compile(tree, self.path, "exec", dont_inherit=True)
        assert isinstance(code, CodeType)
        return code
