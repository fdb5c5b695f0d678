"""Tensors of one network under other names: modules matched by their order and shapes, if only one order fits.

A file tells the order of modules that are numbered (`features.0`, `conv1`), not that of others (`query`, `value`):
those may stand in any order, a name that the target has too decides between equal shapes, and where two orders are
left there is no match.
"""

import functools
import re
from typing import NamedTuple

MODULE_TENSORS = ("weight", "bias", "running_mean", "running_var")
MOST_ORDERS = 100_000  # tried before it is given up


class Module(NamedTuple):
    """The tensors of one module by their last name, or one parameter of another name alone, as `*`."""

    names: dict
    shapes: dict

    @property
    def signature(self):
        return tuple(sorted(self.shapes.items()))


class AmbiguousOrderError(Exception):
    """Two orders of the modules fit."""


def match_by_order(source, target):
    """{target's name: source's name} for every float tensor of the target, or None where the modules differ.

    Args:
        source, target: {name: tensor}; the target's in the order of its modules. The source may go on after the
            target's last module, as with a classifier. Trailing sides of 1 do not matter (1x1 convolution or linear).

    Raises:
        AmbiguousOrderError: modules of equal shapes whose order the names do not tell.
    """
    modules = _modules(target)
    solutions = _Orders(modules).solve(_tree(_modules(source)))
    if len(solutions) > 1:
        pairs = zip(*solutions, strict=True)
        first, second = next((a, b) for a, b in pairs if a.names != b.names)
        raise AmbiguousOrderError(f"{next(iter(first.names.values()))} and {next(iter(second.names.values()))}")
    if not solutions:
        return None
    return {
        name: module.names[last]
        for wanted, module in zip(modules.values(), solutions[0], strict=True)
        for last, name in wanted.names.items()
    }


def _modules(tensors):
    """{path: Module}; a path is a tuple of names."""
    modules = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue  # batch norm's counter, tables of positions
        *parent, last = name.split(".")
        path, last = ((*parent, ""), last) if last in MODULE_TENSORS else ((*parent, last), "*")
        module = modules.setdefault(path, Module({}, {}))
        module.names[last] = name
        module.shapes[last] = _trimmed(tensor.shape)
    return modules


def _trimmed(shape):
    sides = list(shape)
    while sides and sides[-1] == 1:
        sides.pop()
    return tuple(sides)


def _tree(modules):
    """Nested dicts of names, with a Module at each end."""
    root = {}
    for path, module in modules.items():
        node = root
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = module
    return root


class _Orders:
    """Up to two orders of a tree's modules with the shapes of the target's modules, {path: Module}."""

    def __init__(self, modules):
        self.signatures, self.tried = [module.signature for module in modules.values()], 0
        self.paths = list(modules)

    def solve(self, tree):
        return [order for order in self._node(tree, 0) if len(order) == len(self.signatures)]

    def _node(self, node, start):
        if isinstance(node, Module):
            return [(node,)] if self.signatures[start] == node.signature else []
        families = _families(node)

        @functools.cache
        def rest(taken, start):
            """Orders of the children that are left, `taken` of each family being used."""
            left = [number for number, family in enumerate(families) if taken[number] < len(family)]
            if start == len(self.signatures) or not left:
                return [()]
            orders, called_the_same = [], []
            for number in left:
                name, child = families[number][taken[number]]
                after = (*taken[:number], taken[number] + 1, *taken[number + 1 :])
                for order in self._counted(child, start):
                    longer = [(*order, *further) for further in rest(after, start + len(order))]
                    orders += longer
                    called_the_same += longer if name in self.paths[start] else []
            return (called_the_same or orders)[:2]

        return rest((0,) * len(families), start)

    def _counted(self, child, start):
        self.tried += 1
        return self._node(child, start) if self.tried <= MOST_ORDERS else []


def _families(node):
    """The children as (name, child), those whose names differ by a number alone together and in its order."""
    families = {}
    for name, child in node.items():
        families.setdefault(re.sub(r"\d+", "#", name), []).append((name, child))
    return [sorted(family, key=lambda pair: _numbers(pair[0])) for family in families.values()]


def _numbers(name):
    return list(map(int, re.findall(r"\d+", name)))
