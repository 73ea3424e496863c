"""Counts files, lines, private functions used once, modules with one importer, and import chains and cycles.

    python benchmarks/house.py [FOLDER ...]

Each FOLDER is a checkout (default: this one) and gets a column. The files are read, not imported.
"""

import argparse
import ast
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

Imports = dict[str, set[str]]


def trees(package: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each module in a package's folder, by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: nothing within functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef) and not typing_only:
            yield child
            yield from at_import(child)


def imports(modules: dict[str, ast.Module]) -> Imports:
    """Return the modules of the package that each module imports when it is imported itself."""
    found: Imports = {}
    for module, tree in modules.items():
        names = set()
        for node in at_import(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                names |= submodules if len(submodules) == len(node.names) else {node.module, *submodules}
        found[module] = (names & modules.keys()) - {module}
    return found


def used_once(modules: dict[str, ast.Module]) -> tuple[int, int]:
    """Return the number of private functions and methods, and of those that their module uses once."""
    total = once = 0
    for tree in modules.values():
        nodes = list(ast.walk(tree))
        uses = Counter(node.id for node in nodes if isinstance(node, ast.Name))
        uses += Counter(node.attr for node in nodes if isinstance(node, ast.Attribute))
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
        private = [name for name in names if name.startswith("_") and not name.startswith("__")]
        total, once = total + len(private), once + sum(uses[name] == 1 for name in private)
    return total, once


def chain_and_cycles(graph: Imports) -> tuple[int, int]:
    """Return the number of modules in the longest chain of imports, and of groups that import each other."""
    reach = {module: set(found) for module, found in graph.items()}
    for middle, start in itertools.product(graph, graph):
        if middle in reach[start]:
            reach[start] |= reach[middle]
    groups = {frozenset(m for m in reach[start] if start in reach[m]) for start in graph if start in reach[start]}
    length: dict[str, int] = {}
    for module in sorted(graph, key=lambda name: len(reach[name])):  # more than any module that it imports
        length[module] = 1 + max((length.get(other, 0) for other in graph[module]), default=0)
    return max(length.values()), len(groups)


def figures(folder: Path) -> dict[str, int]:
    """Return the figures of one checkout, by their names."""
    rows = {}
    for part in ("src", "tests"):
        sizes = [len(path.read_text().splitlines()) for path in (folder / part).rglob("*.py")]
        rows |= {f"files in {part}": len(sizes), f"lines in {part}": sum(sizes)}
    modules = trees(folder / "src" / "raincast")
    graph = imports(modules)
    importers = Counter(other for found in graph.values() for other in found)
    rows["private functions"], rows["… used once"] = used_once(modules)
    rows["modules with one importer"] = sum(number == 1 for number in importers.values())
    rows["longest import chain"], rows["import cycles"] = chain_and_cycles(graph)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path(__file__).parents[1]])
    columns = {folder.resolve().name: figures(folder) for folder in parser.parse_args().folders}
    lines = [["", *columns], ["---", *("--:" for _ in columns)]]
    lines += [[row, *(str(found[row]) for found in columns.values())] for row in next(iter(columns.values()))]
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)
