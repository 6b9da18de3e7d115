"""Patterns of paths, and the words that they are compared with.

Libraries join names by slashes or dots and disagree about case (`SelfAttention_0/query/kernel`,
`self_attn.q_proj.weight`), so paths are compared as lower-case words joined by slashes.
"""

import functools
import re
from typing import TypeAlias

from muon_jax._checks import invalid

Words: TypeAlias = tuple[str, ...]

_NO_WORD = re.compile(r"(?<![^/])~/")  # Haiku's, which paths are compared without


def words_of(path: str) -> Words:
    """Splits a path at slashes and dots, in lower case, without Haiku's `~`."""
    words = tuple(word for word in re.split(r"[/.]", path.lower()) if word not in ("", "~"))
    return words or ("",)


def check_pattern(call: str, argument: str, pattern: object) -> None:
    """Refuses what is no pattern of paths."""
    if not isinstance(pattern, str) or not pattern:
        raise invalid(call, argument, pattern, 'give a pattern such as "*/kernel"')
    if pattern.count("{") != pattern.count("}"):
        raise invalid(call, argument, pattern, "close every brace, as in {query,key}")


def path_fits(pattern: str, path: str) -> bool:
    """Tells whether a user's pattern, as `Rule` describes them, fits a path."""
    return name_fits(pattern, "/".join(words_of(path)))


def name_fits(pattern: str, name: str) -> bool:
    """As `path_fits`, for the words of a path joined by `/`."""
    return matches(_NO_WORD.sub("", pattern.replace(".", "/")), name)


def matches(pattern: str, text: str) -> bool:
    """Tells whether a word, or words joined by `/`, fits a pattern as a whole.

    A `*` that is a whole word stands for any number of words, also none; within a word it stands
    for any characters, and `?` for one. `{query,key}` is either word, and a comma outside braces
    parts patterns.
    """
    return _expression(pattern).fullmatch(text) is not None


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    any_words, any_rest, any_text = r"(?<![^/,])\*/", r"(?<=/)\*(?![^,])", r"^\*$"
    tokens = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    expression = ""
    for match in re.finditer(f"({any_words})|({any_rest}|{any_text})|(.)", pattern.lower()):
        words, rest, letter = match.groups()
        if words or rest:
            expression += "(?:.*/)?" if words else ".*"
        else:
            expression += tokens.get(letter, re.escape(letter))
    return re.compile(expression)
