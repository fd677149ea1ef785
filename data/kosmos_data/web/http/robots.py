"""What a robots.txt allows one agent, as RFC 9309 reads it.

``urllib.robotparser`` takes the first rule that fits and knows no wildcards; a site that says ``Disallow: /*.jpg$``
means every JPEG, and the longest rule that fits is the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from string import ascii_letters, digits, punctuation
from urllib.parse import quote, urlsplit

_ESCAPED = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset(ascii_letters + digits + "-._~")


@dataclass(frozen=True, slots=True)
class Robots:
    """The rules for one agent.

    Args:
        rules: (pattern, whether it allows), longest pattern first; of equally long ones those that allow.
        delay: seconds between two requests that ``Crawl-delay`` asks for, 0 if it does not.
    """

    rules: tuple[tuple[str, bool], ...] = ()
    delay: float = 0.0

    @classmethod
    def parse(cls, text: str, agent: str) -> Robots:
        """The rules of all groups that name ``agent``, else of those for ``*``; without either all is allowed."""
        groups = list(_groups(text))
        chosen = [group for group in groups if _product(agent) in group.agents]
        chosen = chosen or [group for group in groups if "*" in group.agents]
        rules = sorted(
            (rule for group in chosen for rule in group.rules), key=lambda rule: (-len(rule[0]), not rule[1])
        )
        return cls(tuple(rules), max((group.delay for group in chosen), default=0.0))

    def allows(self, url: str) -> bool:
        """Whether the agent may fetch ``url``."""
        parts = urlsplit(url)
        path = _comparable((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        return next((allowed for pattern, allowed in self.rules if _fits(path, pattern)), True)


@dataclass(slots=True)
class _Group:
    """Some user-agent lines, and what follows up to the next one."""

    agents: set[str] = field(default_factory=set)
    rules: list[tuple[str, bool]] = field(default_factory=list)
    delay: float = 0.0


def _groups(text: str) -> Iterator[_Group]:
    group, in_rules = _Group(), False
    for line in text.removeprefix("\ufeff").splitlines():
        name, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        match name.lower():
            case "user-agent":
                if in_rules:
                    yield group
                    group, in_rules = _Group(), False
                group.agents.add("*" if value == "*" else _product(value))
            case "allow" | "disallow" as kind:
                in_rules = True
                if value:  # an empty one says nothing
                    group.rules.append((_comparable(value), kind == "allow"))
            case "crawl-delay":
                in_rules = True
                group.delay = float(value) if re.fullmatch(r"\d{1,9}(\.\d*)?", value) else 0.0
    yield group


def _product(agent: str) -> str:
    """The product token of a name: ``Kosmos-Data/1.0 (mail)`` is ``kosmos-data``."""
    return re.split(r"[^a-zA-Z_-]", agent, maxsplit=1)[0].lower()


def _comparable(path: str) -> str:
    """Escaped where it must be and nowhere else, so that two spellings of one path are equal."""

    def spelled(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    return _ESCAPED.sub(spelled, quote(path, safe=punctuation))


def _fits(path: str, pattern: str) -> bool:
    """Whether ``path`` begins as ``pattern`` says: ``*`` stands for anything, ``$`` at the end for the end.

    Piece by piece from the left, in one pass: a regular expression of many stars could take for ever.
    """
    anchored = pattern.endswith("$")
    first, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    last = pieces.pop() if anchored and pieces else None
    for piece in pieces:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    if last is not None:
        return len(path) - len(last) >= at and path.endswith(last)
    return not anchored or at == len(path)
