"""How much one GraphQL document may ask for, looked at before anything else is: depth, aliases, fields, fragments.

Rules: the look costs time in proportion to the document, however its fragments refer to each other; what fragments
multiply is multiplied, not walked. A document over a limit is neither validated nor executed, since validation alone
compares fields with each other. Unknown and circular fragments are left to validation, which names them.
"""

from typing import Final, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

DEPTH_MAX: Final = 12
ALIASES_MAX: Final = 100
FIELDS_MAX: Final = 500  # as written; introspection by common tools has some 100
FRAGMENTS_MAX: Final = 100


class _Asked(NamedTuple):
    """What a part of a document asks for. `depth`: levels of fields; introspection's have a limit of their own."""

    depth: int
    aliases: int


class _Outline(NamedTuple):
    """One definition by itself, and the fragments in it with the levels above each; None below an introspection."""

    asked: _Asked
    fields: int
    spreads: list[tuple[str, int | None]]


def over_limits(document: DocumentNode) -> list[str]:
    """What the document asks for too much of; empty when it may be validated."""
    operations = [_outline(node) for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    fragments = {
        node.name.value: _outline(node) for node in document.definitions if isinstance(node, FragmentDefinitionNode)
    }
    fields = sum(outline.fields for outline in (*operations, *fragments.values()))
    counts = [("fragments", len(fragments), FRAGMENTS_MAX), ("fields", fields, FIELDS_MAX)]
    if len(fragments) <= FRAGMENTS_MAX:  # each may be one level of recursion
        known: dict[str, _Asked] = {}
        asked = [_whole(outline, fragments, known) for outline in operations]
        counts.append(("levels of fields", max((of.depth for of in asked), default=0), DEPTH_MAX))
        counts.append(("aliases", sum(of.aliases for of in asked), ALIASES_MAX))
    return [
        f"the document has {number if number < 10**6 else 'more than a million'} {what}; {most} are allowed"
        for what, number, most in counts
        if number > most
    ]


def _outline(definition: OperationDefinitionNode | FragmentDefinitionNode) -> _Outline:
    depth = aliases = fields = 0
    spreads: list[tuple[str, int | None]] = []
    waiting: list[tuple[SelectionSetNode, int | None]] = [(definition.selection_set, 0)]
    while waiting:
        selections, level = waiting.pop()
        for selection in selections.selections:
            if isinstance(selection, FragmentSpreadNode):
                spreads.append((selection.name.value, level))
                continue
            below = level
            if isinstance(selection, FieldNode):
                fields += 1
                aliases += selection.alias is not None
                below = None if level is None or selection.name.value.startswith("__") else level + 1
                depth = max(depth, below or 0)
            if isinstance(selection, FieldNode | InlineFragmentNode) and selection.selection_set is not None:
                waiting.append((selection.selection_set, below))
    return _Outline(_Asked(depth, aliases), fields, spreads)


def _whole(outline: _Outline, fragments: dict[str, _Outline], known: dict[str, _Asked]) -> _Asked:
    """With what its fragments ask for. `known`: the fragments that were worked out."""
    depth, aliases = outline.asked
    for name, level in outline.spreads:
        if name not in known:
            known[name] = _Asked(0, 0)  # what a circle counts for
            if name in fragments:
                known[name] = _whole(fragments[name], fragments, known)
        if level is not None:
            depth = max(depth, level + known[name].depth)
        aliases += known[name].aliases
    return _Asked(depth, aliases)
