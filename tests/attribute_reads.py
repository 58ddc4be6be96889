"""Which attributes of which classes the package reads, by its annotations.

Names are looked up in the imported modules; the types of values follow from annotations
of parameters, fields and results, from constructors, assignments, loops and isinstance.
What has no type there counts for no class: `.steps` of anything else does not count.
"""

import ast
import functools
import inspect
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

Types = set[type]


def classes_in(hint: Any) -> Types:
    """The classes of an annotation, those inside `tuple[...]` and unions too."""
    if isinstance(hint, list):  # of the parameters of a Callable
        return set()
    inside = set().union(*(classes_in(one) for one in typing.get_args(hint)))
    return inside | ({hint} if isinstance(hint, type) else set())


def annotated(owner: type) -> dict[str, Any]:
    """What a class itself annotates, without its bases."""
    found = vars(owner).get("__annotations__")
    return found if isinstance(found, dict) else {}


def parameters_in(hint: Any) -> list[Types]:
    """The parameters of the first Callable inside an annotation."""
    for one in typing.get_args(hint):
        if isinstance(one, list):
            return [classes_in(each) for each in one]
        if found := parameters_in(one):
            return found
    return []


_hints: dict[int, tuple[Any, dict[str, Any]]] = {}  # by id, with its owner


def hints_of(owner: Any) -> dict[str, Any]:
    """Annotations of a class or function, as far as they can be evaluated."""
    if id(owner) not in _hints:
        try:
            _hints[id(owner)] = owner, typing.get_type_hints(owner)
        except (NameError, TypeError, AttributeError):
            _hints[id(owner)] = owner, {}
    return _hints[id(owner)][1]


@functools.cache
def member(one: type, name: str) -> tuple[type | None, Types]:
    """The class that annotates an attribute of this one, and the attribute's types."""
    owner = next((base for base in one.__mro__ if name in annotated(base)), None)
    found = inspect.getattr_static(one, name, None)
    if isinstance(found, property):
        return owner, classes_in(hints_of(found.fget).get("return"))
    return owner, classes_in(hints_of(one).get(name))


@dataclass
class Found:
    """What has been seen so far."""

    reads: set[tuple[type, str]] = field(default_factory=set)
    # Types of attributes without an annotation, which `__init__` sets.
    attributes: dict[tuple[type, str], Types] = field(default_factory=dict)


class Reader(ast.NodeVisitor):
    """Collects the attributes that one function, or the top of a module, reads."""

    def __init__(self, module: ModuleType, known: dict[str, Types], found: "Found"):
        self.module, self.known, self.found = module, dict(known), found
        self.expected: list[Types] = []

    # --- values ---

    def static(self, node: ast.expr) -> Any:
        """What a dotted name of the module's own is; None where it is a local one."""
        if isinstance(node, ast.Name) and node.id not in self.known:
            return getattr(self.module, node.id, None)
        if isinstance(node, ast.Attribute):
            owner = self.static(node.value)
            if isinstance(owner, ModuleType | type):
                return getattr(owner, node.attr, None)
        return None

    def types(self, node: ast.expr | None) -> Types:
        """Classes that a value may have; those of what it holds, too."""
        match node:
            case ast.Name():
                found = self.static(node)
                typed = type(found).__module__.startswith("ranker")
                return self.known.get(node.id, {type(found)} if typed else set())
            case ast.Attribute():
                return self.attribute(node)
            case ast.Call():
                return self.result(node)
            case ast.IfExp():
                return self.types(node.body) | self.types(node.orelse)
            case ast.BoolOp():
                return set().union(*map(self.types, node.values))
            case ast.Subscript() | ast.Starred() | ast.NamedExpr():
                return self.types(node.value)
            case ast.Tuple() | ast.List():
                return set().union(*map(self.types, node.elts))
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                return self.types(node.elt)
        return set()

    def attribute(self, node: ast.Attribute) -> Types:
        found: Types = set()
        for one in self.types(node.value):
            owner, types = member(one, node.attr)
            if owner is not None:
                self.found.reads.add((owner, node.attr))
            found |= types | self.found.attributes.get((one, node.attr), set())
        return found

    def result(self, node: ast.Call) -> Types:
        called = self.static(node.func)
        if getattr(called, "__name__", "") in ("replace", "sorted", "enumerate", "zip"):
            return set().union(*map(self.types, node.args))
        if isinstance(called, type):
            return {called}
        if called is not None:
            return classes_in(hints_of(called).get("return"))
        found: Types = set()
        if isinstance(node.func, ast.Attribute):  # a method
            for one in self.types(node.func.value):
                method = getattr(one, node.func.attr, None)
                found |= classes_in(hints_of(method).get("return"))
            if node.func.attr in ("items", "values", "get"):
                found |= self.types(node.func.value)
        elif isinstance(node.func, ast.Name):
            found |= self.known.get(node.func.id, set())  # a Callable[..., Train]
            if node.func.id in ("sorted", "enumerate", "zip", "list", "tuple"):
                found |= set().union(*map(self.types, node.args))
        return found

    # --- names ---

    def bind(self, target: ast.expr, types: Types) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and types:
                self.known[node.id] = self.known.get(node.id, set()) | types

    def hint(self, annotation: ast.expr | None) -> Any:
        if annotation is None:
            return None
        try:
            return eval(ast.unparse(annotation), vars(self.module))
        except Exception:  # a name that only type checkers see
            return None

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for one, value in pairs:
                if isinstance(one, ast.Attribute):  # self.settings = settings
                    for owner in self.types(one.value):
                        known = self.found.attributes.setdefault(
                            (owner, one.attr), set()
                        )
                        known |= self.types(value)
                else:
                    self.bind(one, self.types(value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        hint = self.hint(node.annotation)
        self.expected = parameters_in(hint)  # of lambdas in a table of functions
        self.generic_visit(node)
        self.expected = []
        self.bind(node.target, classes_in(hint))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self.bind(node.target, self.types(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, self.types(node.iter))
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.bind(node.target, self.types(node.iter))
        self.generic_visit(node)

    def visit_withitem(self, node: ast.withitem) -> None:
        if node.optional_vars is not None:
            self.bind(node.optional_vars, self.types(node.context_expr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "isinstance" and isinstance(node.args[0], ast.Name):
            try:
                kinds = eval(ast.unparse(node.args[1]), vars(self.module))
            except NameError:
                return
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            self.bind(node.args[0], set().union(*map(classes_in, kinds)))
        if name == "getattr" and isinstance(node.args[1], ast.JoinedStr):
            self.read_by_end(node.args[0], node.args[1].values[-1])
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method == "of" and len(node.args) == 2:  # text.of(role, "length")
            self.read_by_end(node.func.value, node.args[1])

    def read_by_end(self, value: ast.expr, end: ast.expr) -> None:
        """`getattr(text, f"{role}_length")` reads every attribute that ends so."""
        if isinstance(end, ast.Constant):
            for one in self.types(value):
                self.found.reads |= {
                    (one, field)
                    for field in annotated(one)
                    if field.endswith(str(end.value))
                }

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.attribute(node)
        self.generic_visit(node)

    # --- scopes ---

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        inner = Reader(self.module, self.known, self.found)
        arguments = node.args
        for one in arguments.posonlyargs + arguments.args + arguments.kwonlyargs:
            if types := classes_in(self.hint(one.annotation)):
                inner.known[one.arg] = types
            elif one.arg not in ("self", "cls"):
                inner.known.pop(one.arg, None)
        for statement in node.body:
            inner.visit(statement)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for one, types in zip(node.args.args, self.expected, strict=False):
            self.known[one.arg] = types
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        owner = getattr(self.module, node.name, None)
        known = {"self": {owner}} if isinstance(owner, type) else {}
        for statement in node.body:
            # A setting that only its own check reads has no effect.
            if not getattr(statement, "name", "").startswith(("__post_init", "_check")):
                inner = Reader(self.module, {**self.known, **known}, self.found)
                inner.visit(statement)


def reads_of(trees: Iterable[tuple[ModuleType, ast.AST]]) -> set[tuple[type, str]]:
    """(class, attribute) for every read in these modules; the class declares it."""
    trees, found = list(trees), Found()
    for _ in range(2):  # an attribute may be read before its class has been seen
        for module, tree in trees:
            Reader(module, {}, found).visit(tree)
    return found.reads
