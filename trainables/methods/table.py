"""A method's settings -> its module. A method's row is the facts of its settings, which name the function to build it.

Looked up by name, and not in a table that imports all of them, so that a method is its file, its row and its test: what
a name leads to is checked for every method by tests/trainables/test_methods_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from pretune.search_spaces import schema
from pretune.trainables.methods.protocol import Method, Parts

Builder = Callable[[schema.Method, schema.Views, Parts], Method]


def builder_of(facts: schema.MethodFacts) -> Builder:
    """The function that `built_by` names, as FILE:FUNCTION."""
    file, _, function = facts.built_by.partition(":")
    found: Builder = getattr(import_module(f"pretune.trainables.methods.{file}"), function)
    return found


def build_method(method: schema.Method, views: schema.Views, parts: Parts) -> Method:
    """The module of a method with these settings; its numbers go to it by their names."""
    return builder_of(method.facts)(method, views, parts)
