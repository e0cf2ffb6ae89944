"""Which rule or layout applies to which leaves, by their paths and shapes alone."""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ._layouts import Layout, default_layout, is_ambiguous, layout_name
from ._modules import TORCH_NN
from ._rules import Block, Layouts, Rule, Shape, Stacked, Tied, hollow, is_rule

_EXACT, _PATTERN, _TUPLE, _STANDARD = range(4)  # what comes first


class Use(NamedTuple):
    """A layout, or a block of a rule, at its place in the tree."""

    where: str  # the path of the leaf or, for a block, of the module
    paths: tuple[str, ...]  # of the leaves
    what: Layout | Block
    name: str  # in messages
    is_given: bool  # whether the user has said so
    aliases: tuple[str, ...] = ()  # PyTorch's other names
    stack: tuple[str, int] | None = None  # the module of the stacked layers, and the axis


class _Entry(NamedTuple):
    """A line of `layouts`."""

    level: int
    pattern: str
    rules: tuple[Layout | Tied | Rule, ...]  # the first that fits applies


def uses_of(
    shapes: Mapping[str, Shape], layouts: Layouts | None, named: Collection[str], problems: list[str]
) -> list[Use]:
    """What applies to the leaves of these paths and shapes: every leaf is in exactly one of the uses.

    A leaf that has been named by itself is no part of a module that nothing was said about.
    """
    given = checked_layouts(layouts, problems)
    tree = _Tree(shapes)
    stacks = _stacks(tree, given, problems)
    inner = {path: _without(shape, stacks.get(path)) for path, shape in shapes.items()}
    one = _Tree({path: shape for path, shape in inner.items() if shape is not None})
    problems += [
        f"{path} has the shape {shape}, so it has no axis {stacks[path][1]} of stacked layers"
        for path, shape in shapes.items()
        if path not in one.shapes
    ]
    taken: dict[str, Use] = {}
    uses: list[Use] = []
    for level in range(4):
        entries = [entry for entry in _entries(given, tree) if entry.level == level]
        found: dict[str, tuple[Use, str]] = {}
        for entry in entries:
            is_used = False
            for fitting in _fitting(entry, one):
                is_used = True
                paths = [path for use in fitting for path in use.paths]
                if level >= _TUPLE and any(path in taken or path in found for path in paths):
                    continue  # it is a default only
                if level == _STANDARD and any(path in named for path in paths):
                    continue
                for use in fitting:
                    _claim(use, entry, found, taken, problems)
            if not is_used and level <= _PATTERN:
                problems.append(_unused(entry, one))
        for use, _ in dict.fromkeys(found.values()):
            uses.append(use)
            taken |= dict.fromkeys(use.paths, use)
    for path, shape in one.shapes.items():
        if path not in taken:
            layout = default_layout(path, shape)
            if is_ambiguous(path, shape):
                problems.append(
                    f"{path} {shape} may be CONV_TRANSPOSE or, with transpose_kernel=True, CONV_TRANSPOSE_KERNEL, and "
                    "both fit: give one of them with the argument layouts"
                )
            uses.append(Use(path, (path,), layout, layout_name(layout), is_given=False))
    position = {path: index for index, path in enumerate(shapes)}
    placed = [use._replace(stack=stacks.get(use.paths[0])) for use in uses]
    return sorted(placed, key=lambda use: position[use.paths[0]])


def checked_layouts(layouts: Any, problems: list[str]) -> Layouts:
    """The argument; entries that are not layouts or rules are left out and added to the problems."""
    if layouts is None:
        return {}
    if not isinstance(layouts, Mapping):
        problems.append(f"layouts must be a dictionary from paths to layouts or rules, got {layouts!r}")
        return {}
    wrong = {path: one for path, one in layouts.items() if not isinstance(path, str) or not is_rule(one)}
    problems += [f"layouts must have a Layout or a rule for {path!r}, got {one!r}" for path, one in wrong.items()]
    return {path: one for path, one in layouts.items() if path not in wrong}


class _Tree:
    """Leaves by path, and the modules above them."""

    def __init__(self, shapes: Mapping[str, Shape]):
        self.shapes = shapes
        words = [path.split("/") for path in shapes]
        above = ["/".join(each[:count]) for each in words for count in range(len(each))]
        self.modules = dict.fromkeys(above)

    def leaves(self, pattern: str) -> list[str]:
        return [pattern] if pattern in self.shapes else fnmatch.filter(self.shapes, pattern)

    def below(self, pattern: str) -> list[str]:
        return [pattern] if pattern in self.modules else fnmatch.filter(self.modules, pattern)


def _joined(module: str, leaf: str) -> str:
    """The path of what is in a module."""
    return f"{module}/{leaf}" if module else leaf


def _stacks(tree: _Tree, given: Layouts, problems: list[str]) -> dict[str, tuple[str, int]]:
    """For every leaf that stacks layers, the module of the layers, and the axis."""
    found: dict[str, tuple[str, int]] = {}
    for pattern, rule in given.items():
        if not isinstance(rule, Stacked):
            continue
        modules = tree.below(pattern)
        if not modules:
            problems.append(f"layouts has Stacked for {pattern}, which is not a module")
        for module in modules:
            for path in tree.shapes:
                if not path.startswith(f"{module}/" if module else ""):
                    continue
                if path in found and found[path][0] != module:
                    problems.append(f"{path} is in two modules of stacked layers, {found[path][0]} and {module}")
                found[path] = (module, rule.axis)
    return found


def _without(shape: Shape, stack: tuple[str, int] | None) -> Shape | None:
    """The shape of one layer; `None` if there is no such axis."""
    if stack is None:
        return shape
    axis = stack[1]
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _entries(given: Layouts, tree: _Tree) -> Iterator[_Entry]:
    for pattern, rule in given.items():
        if isinstance(rule, Stacked):
            continue
        if isinstance(rule, Layout | Tied | Rule):
            is_exact = pattern in tree.shapes or pattern in tree.modules
            yield _Entry(_EXACT if is_exact else _PATTERN, pattern, (rule,))
        else:
            yield _Entry(_TUPLE, pattern, rule)
    for pattern, rules in TORCH_NN.items():
        yield _Entry(_STANDARD, pattern, rules)


def _fitting(entry: _Entry, tree: _Tree) -> Iterator[list[Use]]:
    """What an entry applies to: for each leaf or module, the uses of the first rule that fits."""
    is_given = entry.level < _STANDARD
    places = dict.fromkeys([*tree.leaves(entry.pattern), *tree.below(entry.pattern)])
    for place in places:
        for rule in entry.rules:
            if isinstance(rule, Rule):
                uses = _blocks_at(rule, place, tree, is_given)
            elif place in tree.shapes:
                others = rule.others if isinstance(rule, Tied) else ()
                layout = rule.layout if isinstance(rule, Tied) else rule
                aliases = (others,) if isinstance(others, str) else others
                uses = [Use(place, (place,), layout, layout_name(layout), is_given, aliases)]
            else:
                uses = []
            if uses:
                yield uses
                break


def _blocks_at(rule: Rule, module: str, tree: _Tree, is_given: bool) -> list[Use]:
    """The blocks of the first variant that fits a module; none if none does."""
    for blocks in rule.variants:
        if not all(_fits(block, module, tree) for block in blocks if not block.is_optional):
            continue
        paths = [tuple(_joined(module, leaf) for leaf in block.leaves) for block in blocks]
        return [
            Use(module, own, block, rule.name, is_given)
            for block, own in zip(blocks, paths)
            if all(path in tree.shapes for path in own)
        ]
    return []


def _fits(block: Block, module: str, tree: _Tree) -> bool:
    """Whether a module has the leaves of a block, in shapes that it accepts."""
    paths = [_joined(module, leaf) for leaf in block.leaves]
    if not all(path in tree.shapes for path in paths):
        return False
    try:
        block.to_torch([hollow(tree.shapes[path]) for path in paths])
    except ValueError:
        return False
    return True


def _claim(
    use: Use, entry: _Entry, found: dict[str, tuple[Use, str]], taken: Mapping[str, Use], problems: list[str]
) -> None:
    """Notes that a use has its leaves, unless something that comes first has them."""
    others = {path: found[path] for path in use.paths if path in found}
    for path, (other, pattern) in others.items():
        if other.what != use.what or other.aliases != use.aliases:
            problems.append(f"layouts has different ones for {path}: {pattern}, {entry.pattern}")
    first = [path for path in use.paths if path in taken]
    if first and len(first) < len(use.paths) and entry.level <= _PATTERN:
        problems.append(
            f"layouts has {use.name} for {use.where}, but something else for {first[0]}, which is part of it"
        )
    if not others and not first:
        found |= dict.fromkeys(use.paths, (use, entry.pattern))


def _unused(entry: _Entry, tree: _Tree) -> str:
    """Why a line of `layouts` applies nowhere."""
    rule = entry.rules[0]
    modules = tree.below(entry.pattern)
    if not isinstance(rule, Rule):
        return f"layouts has one for {entry.pattern}, which is not a parameter"
    if not modules:
        return f"layouts has one for {entry.pattern}, which is not a module"
    module = modules[0]
    has = [path[len(module) :].lstrip("/") for path in tree.shapes if path.startswith(f"{module}/" if module else "")]
    own = ", ".join(f"{leaf} {tree.shapes[_joined(module, leaf)]}" for leaf in has[:8]) + ", …" * (len(has) > 8)
    required = [
        [leaf for block in blocks if not block.is_optional for leaf in block.leaves] for blocks in rule.variants
    ]
    needs = " or ".join(dict.fromkeys(", ".join(leaves) for leaves in required))
    return f"layouts has {rule.name} for {entry.pattern}, which needs {needs}, but {module or 'the tree'} has {own}"
