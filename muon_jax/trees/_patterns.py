"""Patterns of paths.

Libraries join names by slashes or dots and differ in case (`SelfAttention_0/query/kernel`,
`self_attn.q_proj.weight`), so paths are compared as lower-case words joined by slashes.
"""

import functools
import re
from collections.abc import Sequence
from typing import TypeAlias

from muon_jax._checks import invalid, nearest, refused

Words: TypeAlias = tuple[str, ...]

_HAIKU = re.compile(r"(?<![^/])~/")  # Haiku's `~` in a pattern; paths are compared without it


def split_path(path: str) -> list[str]:
    """Splits a path at slashes and dots, without Haiku's `~`."""
    return [word for word in re.split(r"[/.]", path) if word not in ("", "~")] or [""]


def words_of(path: str) -> Words:
    """Returns the lower-case words of a path."""
    return tuple(split_path(path.lower()))


def check_pattern(argument: str, pattern: object) -> None:
    """Raises ValueError unless `pattern` is a pattern of paths."""
    if not isinstance(pattern, str) or not pattern:
        raise invalid(argument, pattern, 'give a pattern such as "*/kernel"')
    try:
        _expression(pattern)
    except re.error:
        remedy = "open and close every brace, as in {query,key}"
        raise invalid(argument, pattern, remedy) from None


def path_fits(pattern: str, path: str) -> bool:
    """Returns whether a path matches a user's pattern, as described in `Rule`."""
    return matches(_HAIKU.sub("", pattern.replace(".", "/")), "/".join(words_of(path)))


def fits_nothing(what: str, pattern: str, paths: Sequence[str]) -> Exception:
    """Returns the error for a pattern that no path matches; it lists the nearest paths."""
    return refused(
        f"no parameter fits the pattern {pattern!r} of {what}",
        f"The nearest paths are {nearest(pattern, paths)}",
    )


def matches(pattern: str, text: str) -> bool:
    """Returns whether a word, or words joined by `/`, match a whole pattern.

    A `*` that is a whole word matches zero or more words; inside a word it matches any characters,
    and `?` one character. `{query,key}` matches either word, and a comma outside braces separates
    patterns.
    """
    return _expression(pattern).fullmatch(text) is not None


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    any_words, any_rest, any_text = r"(?<![^/,])\*/", r"(?<=/)\*(?![^,])", r"^\*$"
    tokens = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    expression = ""
    for match in re.finditer(f"({any_words})|({any_rest}|{any_text})|(.)", pattern.lower(), re.S):
        words, rest, letter = match.groups()
        if words or rest:
            expression += "(?:.*/)?" if words else ".*"
        else:
            expression += tokens.get(letter, re.escape(letter))
    return re.compile(expression)
