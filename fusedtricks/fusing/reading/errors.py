"""What is raised while a forward is read."""

from __future__ import annotations


class NotReadable(Exception):
    """A forward cannot be written as a graph that does the same; the message says why.

    Attributes:
        where: file and line of the statement, "" if unknown.
    """

    where = ""


class Absent(Exception):
    """An attribute that does not exist."""
