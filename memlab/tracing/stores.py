"""What the statements of a file that store into a name do: read from its syntax, for recognising patterns."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from memlab import places
from memlab.tracing.scopes import FUNCTIONS, Scopes, class_of, file_of_global, scopes_of, tree_of

_REGISTERS = re.compile(r"register_(?:\w+_)?hook")  # torch's own names
_PUTS = {"append", "extend", "add", "insert", "update", "appendleft", "setdefault", "push", "put"}
_EMPTY = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict"}
ADD, MIX, PUT, NEW, ASSIGN, HOOK = "add", "mix", "put", "new", "assign", "hook"
Stored = tuple[ast.AST, str]  # a statement, and what it does


def stores(name: str, where: str) -> frozenset[str]:
    """Return what the statements do that store something new into ``name``, where it lives.

    ``add``: what it was, and something more (``x += y``). ``mix``: a part of what it was, and something more
    (``x = a * x + b * y``, ``x.lerp_(y, a)``). ``put``: an element (``x.append(y)``). ``new``: what does not come from
    what it was, nor by way of other names (``x = f(y); y = x``). ``assign``: anything else. ``hook``: one of them lies
    in a function that is registered as a hook. Empty where no statement can be found.
    """
    try:
        for tree, found in _found(name, where):
            kinds = {kind for _, kind in found}
            if NEW in kinds and _comes_from_itself(tree, _last(name), [statement for statement, _ in found]):
                kinds = kinds - {NEW} | {ASSIGN}
            if kinds:
                return frozenset(kinds | ({HOOK} if _in_hook(tree, [statement for statement, _ in found]) else set()))
    except (OSError, SyntaxError, ValueError, RecursionError):
        pass
    return frozenset()


def _found(name: str, where: str) -> Iterator[tuple[ast.Module, list[Stored]]]:
    """Yield a file's syntax and its statements that store into the name, the likeliest file first."""
    root, last = re.split(r"[.\[]", name)[0], _last(name)
    place, module = places.at_end(where), file_of_global(where)
    if place is not None:
        file, line = place
        tree = tree_of(file)
        yield tree, list(statements(_scope(tree, line), last)) or (list(statements(tree, last)) if "." in name else [])
    elif module is not None:
        scopes = scopes_of(module)
        every = statements(scopes.tree, last)
        yield scopes.tree, [each for each in every if last != root or scopes.home(root, each[0]) is None]
    kind = class_of(where) if "." in name else None
    if kind is not None:
        scopes = scopes_of(kind[1])
        yield scopes.tree, list(statements_of_class(scopes, kind[0], last))


def _last(name: str) -> str:
    return re.sub(r"\[.*", "", name).rpartition(".")[2]


def _comes_from_itself(tree: ast.Module, name: str, found: list[ast.AST]) -> bool:
    """Whether what is assigned to a name was computed from it, also by way of other names of its function."""
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for scope in {_scope(tree, getattr(each, "lineno", 0)) for each in found}:
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for each in _names_in(target):
                        sources[each] |= _names_in(node.value)
    met, waiting = set(sources[name]), list(sources[name])
    while waiting:
        fresh = sources[waiting.pop()] - met
        met |= fresh
        waiting.extend(fresh)
    return name in met


def _names_in(node: ast.AST) -> set[str]:
    """Return the variables and attributes in an expression by their last names, without what is called."""
    called = {id(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
    found = [each for each in ast.walk(node) if id(each) not in called]
    names = {each.id for each in found if isinstance(each, ast.Name)}
    return names | {each.attr for each in found if isinstance(each, ast.Attribute)}


def _scope(tree: ast.Module, line: int) -> ast.AST:
    """Return the outermost function around a line, for one that closes over a name may be far from one that stores."""
    waiting: list[ast.AST] = list(tree.body)
    for node in waiting:  # grows meanwhile
        if isinstance(node, FUNCTIONS):
            if node.lineno <= line <= (node.end_lineno or node.lineno):
                return node
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return tree


def statements(scope: ast.AST, name: str) -> Iterator[Stored]:
    """Yield what puts something new into the name; what only empties it, or gives it a constant, does not count."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from ((node, kind) for kind in _put(target, node.value, name))
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield from ((node, kind) for kind in _put(node.target, node.value, name))
        elif isinstance(node, ast.AugAssign) and _is_name(node.target, name):
            yield node, ADD if isinstance(node.op, (ast.Add, ast.Sub)) else MIX
        elif isinstance(node, ast.Call) and (kind := _call(node, name)):
            yield node, kind


def statements_of_class(scopes: Scopes, kind: str, name: str) -> Iterator[Stored]:
    """Yield what puts something new into an attribute of a class, or of its methods' ``self``."""
    for node, what in statements(scopes.tree, name):
        owner, own = scopes.method(node)
        of_self = owner == kind and f"{own}.{name}" in targets_of(node)
        of_class = f"{kind}.{name}" in targets_of(node) and scopes.home(kind, node) is None
        if of_self or of_class:
            yield node, what


def targets_of(node: ast.AST) -> list[str]:
    """Return what a storing statement stores into, as text: ``self.seen`` of ``self.seen[step].append(y)``."""
    if isinstance(node, ast.Assign):
        return [text for target in node.targets for text in _texts(target)]
    if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        return list(_texts(node.target))
    return list(_texts(node.func.value)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else []


def _texts(target: ast.expr) -> Iterator[str]:
    while isinstance(target, (ast.Subscript, ast.Starred)):
        target = target.value
    if isinstance(target, (ast.Tuple, ast.List)):
        for each in target.elts:
            yield from _texts(each)
    elif isinstance(target, (ast.Name, ast.Attribute)):
        yield ast.unparse(target)


def _put(target: ast.expr, value: ast.expr, name: str) -> Iterator[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, each in zip(target.elts, value.elts, strict=True):
            yield from _put(one, each, name)
    elif isinstance(value, ast.IfExp) and _is_name(target, name):
        yield from _put(target, value.body, name)
        yield from _put(target, value.orelse, name)
    elif _is_name(target, name) and not _is_empty(value):
        yield _assigned(value, name)


def _assigned(value: ast.expr, name: str) -> str:
    """Tell a sum with the name itself as a term from one with a part of it."""
    terms = list(_terms(value))
    if not _mentions(value, name):
        return NEW
    if len(terms) == 1:
        return MIX if _is_lerp(value, name) or _scaled_sum(value, name) else ASSIGN
    own = [each for each in terms if _is_name(each, name)]
    scaled = [each for each in terms if _is_product(each, name)]
    others = [each for each in terms if each not in own and each not in scaled]
    if any(_mentions(each, name) for each in others):
        return ASSIGN
    return MIX if scaled else ADD if own else ASSIGN


def _terms(value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Add, ast.Sub)):
        yield from _terms(value.left)
        yield from _terms(value.right)
    else:
        yield value


def _is_product(value: ast.expr, name: str) -> bool:
    """A factor is the name, or a sum with it: ``a * x``, ``a * (y - x)``."""
    if not (isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Mult, ast.Div))):
        return False
    factors = [value.left] if isinstance(value.op, ast.Div) else [value.left, value.right]
    return any(_is_name(term, name) or _is_product(term, name) for each in factors for term in _terms(each))


def _scaled_sum(value: ast.expr, name: str) -> bool:
    """``(n * x + y) / (n + 1)``: one term, in which a sum stands."""
    return _is_product(value, name) and any(
        len(list(_terms(each))) > 1 for each in ast.walk(value) if isinstance(each, ast.BinOp)
    )


def _is_lerp(value: ast.expr, name: str) -> bool:
    """``x.lerp(y, a)`` or ``torch.lerp(x, y, a)``."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "lerp"):
        return False
    return any(_is_name(each, name) for each in (value.func.value, *value.args[:1]))


def _call(call: ast.Call, name: str) -> str:
    """What a method does to the name that it is called on: ``x.append(y)``, ``x.mul_(a).add_(y)``."""
    if not isinstance(call.func, ast.Attribute):
        return ""
    method, on = call.func.attr, call.func.value
    if _is_name(on, name):
        known = {"add_": ADD, "sub_": ADD, "mul_": MIX, "div_": MIX, "lerp_": MIX, **dict.fromkeys(_PUTS, PUT)}
        if method == "copy_" and call.args:
            return _assigned(call.args[0], name)
        return known.get(method, "")
    return ""


def _is_name(node: ast.expr, name: str) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return any(_is_name(each, name) for each in node.elts)
    while isinstance(node, (ast.Subscript, ast.Starred)):
        node = node.value
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(each, (ast.Name, ast.Attribute)) and _is_name(each, name) for each in ast.walk(node))


def _is_empty(value: ast.expr) -> bool:
    """Whether nothing that could lead to a graph is in it."""
    if isinstance(value, ast.Constant):
        return True
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    return isinstance(value, ast.Call) and _last_name(value.func) in _EMPTY


def _last_name(function: ast.expr) -> str:
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _in_hook(tree: ast.Module, statements: list[ast.AST]) -> bool:
    """Whether one of the statements lies in a function that the file registers as a hook, or that makes one."""
    registered: set[str] = set()
    hooks: list[ast.AST] = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _REGISTERS.fullmatch(_last_name(call.func)):
            for given in call.args:
                hooks += [each for each in ast.walk(given) if isinstance(each, ast.Lambda)]
                registered |= {_last_name(given.func if isinstance(given, ast.Call) else given)}
    hooks += [each for each in ast.walk(tree) if getattr(each, "name", None) in registered - {""}]
    inside = {id(each) for hook in hooks if isinstance(hook, FUNCTIONS) for each in ast.walk(hook)}
    return any(id(each) in inside for each in statements)
