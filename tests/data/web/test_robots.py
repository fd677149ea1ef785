"""robots.txt: what RFC 9309 gives as examples, what it demands, and what must not take time."""

from __future__ import annotations

import time

import pytest

from kosmos_data.web.http.robots import Robots

AGENT = "Kosmos-Data/1.0 (mail@lab.org)"


def allowed(rules: str, path: str, agent: str = AGENT) -> bool:
    return Robots.parse(rules, agent).allows(f"http://site.example{path}")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/", "/anything", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish.asp", False),
        ("/fish*", "/fishheads/yummy.html?id=anything", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/folder/filename.php?parameters", True),
        ("/*.php", "/windows.PHP", False),
        ("/*.php$", "/filename.php", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/filename.php5", False),
        ("/fish*.php", "/fishheads/catfish.php?parameters", True),
        ("/fish*.php", "/Fish.PHP", False),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/a*b*b$", "/ab", False),
        ("/a*b*b$", "/abxb", True),
        ("/?page=", "/?page=2", True),
        ("/foo/bar/\u30c4", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%e3%83%84", "/foo/bar/\u30c4", True),
        ("/foo/%62%61%7a", "/foo/baz", True),
        ("/foo%2fbar", "/foo/bar", False),
    ],
)
def test_patterns(pattern: str, path: str, fits: bool) -> None:
    """RFC 9309, sections 2.2.2 and 2.2.3, and the examples of Google's documentation, which it standardises."""
    assert allowed(f"User-agent: *\nDisallow: {pattern}", path) != fits


def test_the_longest_rule_counts_and_of_equals_the_one_that_allows() -> None:
    rules = "User-Agent: *\nDisallow: /\nAllow: /page\nDisallow: /*.gif$\nAllow: /*.gif$\nDisallow: /page/secret\n"
    assert allowed(rules, "/page/a")
    assert not allowed(rules, "/page/secret/a")
    assert allowed(rules, "/a.gif")
    assert not allowed(rules, "/b")


def test_an_agent_has_its_own_groups_all_of_them_and_those_of_all_otherwise() -> None:
    rules = """\ufeff# comment
user-agent: ExampleBot
user-agent: KOSMOS-DATA/9   # any version
Crawl-Delay: 2.5
disallow: /one
Sitemap: https://site.example/map.xml

User-agent: *
Disallow: /
Crawl-delay: soon

User-agent: kosmos-data
Disallow: /two
Disallow:
"""
    assert [allowed(rules, path) for path in ("/one", "/two", "/three")] == [False, False, True]
    assert [allowed(rules, path, "Other/1") for path in ("/one", "/three")] == [False, False]
    assert not allowed(rules, "/three", "kosmos")  # not a part of the name
    assert Robots.parse(rules, AGENT).delay == 2.5
    assert Robots.parse(rules, "Other/1").delay == 0
    assert allowed("", "/a")
    assert allowed("<html>not found</html>", "/a")


def test_hostile_rules_take_no_time() -> None:
    rules = "User-agent: *\n" + f"Disallow: /{'*a' * 1000}b$\n" * 200 + "Disallow: /x\n" * 20_000
    start = time.process_time()
    robots = Robots.parse(rules, AGENT)
    assert robots.allows(f"http://site.example/{'a' * 2000}")
    assert time.process_time() - start < 2
