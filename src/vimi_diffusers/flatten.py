# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One file of Python from a class of this package: the class and everything of the package that it needs.

diffusers runs such files for `trust_remote_code`. It copies each alone, so a file may import libraries, but nothing of
this package.
"""

import ast
import importlib
import textwrap
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

from . import __version__


PACKAGE = __package__

HEADER = """\
# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0:
# http://www.apache.org/licenses/LICENSE-2.0
#
# Written by `vimi export --with-code` of {package} {version} from its modules
{modules}.
# Change those instead of this file.
"""

FOOTER = """

def __dir__() -> list[str]:
    return [%r]  # diffusers looks here for the one class to load
"""


class Library(NamedTuple):
    """What an import from outside the package binds: a module (`attribute` is empty) or one of its attributes."""

    module: str
    attribute: str = ""


class Definition(NamedTuple):
    """A name at the top level of one of the package's modules."""

    module: str
    name: str


class _Module:
    """A parsed module: its top-level statements, what they define, and what its imports bind."""

    def __init__(self, name: str):
        file = Path(importlib.import_module(name).__file__)
        self.name = name
        self.package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.source = file.read_text(encoding="utf-8")
        self.lines = self.source.splitlines(keepends=True)
        self.bound: dict[str, Library | Definition] = {}
        self.defined: dict[str, list[ast.stmt]] = {}
        self.effects: list[ast.stmt] = []
        self.requires: list[str] = []
        for statement in ast.parse(self.source).body:
            self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                # `import a.b` binds a, and `a.b` has to be written again
                self.bound[alias.asname or alias.name] = Library(alias.name)
        elif isinstance(statement, ast.ImportFrom):
            origin = resolve_name("." * statement.level + (statement.module or ""), self.package)
            kind = Definition if statement.level else Library
            self.bound |= {alias.asname or alias.name: kind(origin, alias.name) for alias in statement.names}
            if statement.level:
                self.requires.append(origin)
        elif isinstance(statement, ast.Expr):
            if not isinstance(statement.value, ast.Constant):  # a docstring has no effect
                self.effects.append(statement)
        elif not (isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"):
            for name in _bindings(statement):
                self.defined.setdefault(name, []).append(statement)

    def target(self, name: str) -> Library | Definition | None:
        """What a global name of this module stands for; `None` for a builtin."""
        if name in self.defined:
            return Definition(self.name, name)
        if name in self.bound:
            return self.bound[name]
        dotted = [bound for bound in self.bound if bound.startswith(name + ".")]
        return Library(name) if dotted else None

    def segment(self, statement: ast.stmt) -> tuple[int, int]:
        """First line (with decorators and the comment above) and the line after the last, counted from 0."""
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", ()))]) - 1
        while first and self.lines[first - 1].startswith("#") and first - 1:
            first -= 1
        return first, statement.end_lineno


def _bindings(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a statement reads when it runs, and those that stand in annotations only."""
    annotations = set()
    for node in ast.walk(statement):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                annotations.update(child for child in ast.walk(annotation) if isinstance(child, ast.Name))
    names = {node for node in ast.walk(statement) if isinstance(node, ast.Name)}
    run = {node.id for node in names - annotations}
    return run, {node.id for node in annotations} - run


class _Flattener:
    def __init__(self, stand_ins: dict[Definition, Library]):
        self.stand_ins = stand_ins
        self.modules: dict[str, _Module] = {}
        self.included: dict[str, set[ast.stmt]] = {}
        self.finals: dict[Library | Definition, str] = {}

    def module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _Module(name)
        return self.modules[name]

    def resolve(self, target: Library | Definition | None) -> Library | Definition | None:
        """Follow re-exports to where a name is defined."""
        while isinstance(target, Definition) and target.name not in self.module(target.module).defined:
            following = self.module(target.module).target(target.name)
            if following is None:
                raise ValueError(
                    f"{target.module} has no top-level name {target.name!r} to flatten: import it from the module "
                    "that defines it."
                )
            target = following
        return target

    def include(self, target: Definition, typed_only: set[Definition]) -> None:
        """Take in a definition, and the effects of its module, with all that they need."""
        module, waiting = self.module(target.module), []
        included = self.included.setdefault(module.name, set())
        waiting = [node for node in [*module.defined[target.name], *module.effects] if node not in included]
        included.update(waiting)
        for statement in waiting:
            run, annotated = _names(statement)
            for name in run | annotated:
                needed = self.resolve(module.target(name))
                if isinstance(needed, Definition):
                    if name in annotated and needed in self.stand_ins:
                        typed_only.add(needed)
                    else:
                        self.include(needed, typed_only)

    def ordered(self, name: str, begun: set[str]) -> Iterator[str]:
        """The included modules in the order in which Python finishes importing them."""
        begun.add(name)
        for required in self.module(name).requires:
            if required not in begun:
                yield from self.ordered(required, begun)
        if name in self.included:
            yield name

    def taken(self) -> Iterator[Definition]:
        """The definitions that are taken in."""
        for name, statements in self.included.items():
            for local, own in self.module(name).defined.items():
                if statements.intersection(own):
                    yield Definition(name, local)

    def final(self, target: Library | Definition, local: str) -> str:
        """The one name of a target in the flat file: its local name, with the module's behind it if that is taken."""
        if target not in self.finals:
            taken = set(self.finals.values())
            if local in taken:
                local = f"{local}_{target.module.rpartition('.')[2]}"
            if local in taken:
                raise ValueError(f"Two names become {local!r} in the flat file: rename {target} in its module.")
            self.finals[target] = local
        return self.finals[target]

    def text(self, module: _Module, statement: ast.stmt) -> str:
        """The source of a statement, with the names of the flat file."""
        first, last = module.segment(statement)
        lines = [line.encode() for line in module.lines[first:last]]  # ast counts columns in bytes
        shadowed = {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
        edits = []
        name = getattr(statement, "name", None)  # of a class or function
        if name and (final := self.final(Definition(module.name, name), name)) != name:
            start = lines[statement.lineno - 1 - first].index(f" {name}".encode()) + 1
            edits.append((statement.lineno - 1 - first, start, start + len(name.encode()), final))
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom) and node.level:
                origin = resolve_name("." * node.level + (node.module or ""), module.package)
                raise ValueError(
                    f"{module.name}, line {node.lineno}: import from {origin} at the top of the module, flat files "
                    "have no package to import from."
                )
            if not isinstance(node, ast.Name):
                continue
            target = self.resolve(module.target(node.id))
            if target is None or (final := self.final(target, node.id)) == node.id:
                continue
            if node.id in shadowed:
                raise ValueError(f"{module.name}: the argument {node.id!r} hides a global that must be renamed.")
            edits.append((node.lineno - 1 - first, node.col_offset, node.end_col_offset, final))
        for row, start, end, final in sorted(edits, reverse=True):
            lines[row] = lines[row][:start] + final.encode() + lines[row][end:]
        return b"".join(lines).decode().rstrip() + "\n"

    def libraries(self, module: _Module) -> Iterator[tuple[str, Library]]:
        """The library imports that the included statements of a module need, with their local names."""
        names = set().union(*(set().union(*_names(statement)) for statement in self.included[module.name]))
        for local, bound in module.bound.items():
            target = self.resolve(bound) if local.partition(".")[0] in names else None
            if isinstance(target, Library):
                yield local, target


def _write_imports(imports: set[tuple[Library, str]]) -> str:
    plain, named = set(), {}
    for library, local in imports:
        if library.attribute:
            alias = library.attribute if library.attribute == local else f"{library.attribute} as {local}"
            named.setdefault(library.module, set()).add(alias)
        else:
            plain.add(
                f"import {library.module}" + ("" if local == library.module.partition(".")[0] else f" as {local}")
            )
    lines = sorted(plain)
    for module in sorted(named):
        line = f"from {module} import {', '.join(sorted(named[module]))}"
        if len(line) > 119:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(named[module])) + ")"
        lines.append(line)
    return "\n".join(lines) + "\n"


def flatten(cls: type, stand_ins: dict[type, type] | None = None) -> str:
    """
    Write one self-contained module that defines a class of this package.

    Only what the class needs is taken, in the package's own words; names that collide are renamed.

    Args:
        cls (`type`):
            The class.
        stand_ins (`dict[type, type]`, *optional*):
            Classes of this package that other files define, with a library's class to import in their place where
            they are only named in annotations.

    Returns:
        `str`: the source of the module.

    Raises:
        `ValueError`: if the sources use something that does not survive flattening, naming the place.
    """
    stand_ins = {
        Definition(own.__module__, own.__name__): Library(base.__module__, base.__name__)
        for own, base in (stand_ins or {}).items()
    }
    flattener, typed_only = _Flattener(stand_ins), set()
    entry = Definition(cls.__module__, cls.__name__)
    flattener.include(entry, typed_only)
    flattener.final(entry, entry.name)

    order = list(flattener.ordered(entry.module, set()))
    imports = set()
    for name in order:
        for local, library in flattener.libraries(flattener.modules[name]):
            plain = not library.attribute and local == library.module
            root = Library(local.partition(".")[0]) if plain else library  # `import a.b` binds a
            imports.add((library, flattener.final(root, root.module if plain else local)))
    for definition in sorted(typed_only - set(flattener.taken())):
        imports.add((stand_ins[definition], flattener.final(definition, definition.name)))

    bodies = []
    for name in order:
        module = flattener.modules[name]
        statements = sorted(flattener.included[name], key=lambda statement: statement.lineno)
        texts = "\n\n".join(flattener.text(module, statement) for statement in statements)
        bodies.append(f"# {'-' * 20} {name.replace('.', '/')}.py\n\n\n{texts}")
    doc = ast.get_docstring(ast.parse(flattener.modules[entry.module].source), clean=False) or entry.name
    modules = textwrap.fill(", ".join(order), 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    header = HEADER.format(package=PACKAGE, version=__version__, modules=modules)
    source = f'{header}"""{doc}"""\n\n{_write_imports(imports)}\n\n' + "\n\n".join(bodies) + FOOTER % entry.name
    compile(source, f"{cls.__name__}.py", "exec")
    return source
