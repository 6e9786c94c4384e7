"""The syntax tree of a chat template, changed so that everything that costs reports its cost.

In: Jinja's tree; out: the same tree with calls of three filters put in: TICK at the head of each
loop, macro and block body, CHARGE around each expression that makes a value, CHARGE_SLICE around
slices. Their meaning is sandbox.py's. Also parses the `{% generation %}` tag.
"""

# ruff: noqa: N802, N815  (Jinja finds methods by the names of its nodes)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

# Filter names that no template can write: they hold spaces.
TICK = "sterna tick"
CHARGE = "sterna charge"
CHARGE_SLICE = "sterna charge slice"


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what an assistant wrote; renders as is."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the tag into a call block, which gives its body a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Instrument(NodeTransformer):
    """Makes every node that costs something report it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._tick_body(node)
        if node.test is not None:
            node.test = nodes.And(_tick(0, node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._tick_body(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._tick_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        call = node.call  # must stay a bare Call: only its arguments are instrumented
        self.generic_visit(call)
        self._tick_body(node)
        node.call = call
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_charged(child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_charged(child) for child in node.nodes]
        return _charged(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node, CHARGE_SLICE) if isinstance(node.arg, nodes.Slice) else node

    def _visit_value(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node)

    visit_List = visit_Dict = visit_Filter = visit_Call = _visit_value
    visit_Add = visit_Mul = visit_Mod = visit_Pow = _visit_value

    def _tick_body(self, node: Any) -> nodes.Node:
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_tick(literal, node), lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _tick(cost: int, at: nodes.Node) -> nodes.Filter:
    value = nodes.Const(cost, lineno=at.lineno)
    return nodes.Filter(value, TICK, [], [], None, None, lineno=at.lineno)


def _charged(node: nodes.Expr, charge: str = CHARGE) -> nodes.Expr:
    if isinstance(node, nodes.TemplateData) or getattr(node, "name", None) == CHARGE:
        return node
    return nodes.Filter(node, charge, [], [], None, None, lineno=node.lineno)
