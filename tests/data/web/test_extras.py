"""Without the extra ``web`` everything else works, and one line says what to install."""

from __future__ import annotations

import subprocess
import sys


def test_the_packages_are_asked_for_by_name_and_only_when_needed() -> None:
    program = (
        "import sys\n"
        "import kosmos.extras, kosmos_data, kosmos_data.cli, kosmos_data.web, kosmos_data.web.page\n"
        "packages = ('fastwarc', 'selectolax', 'httpx', 'w3lib', 'datatrove')\n"
        "assert not any(name in sys.modules for name in packages)\n"
        "sys.modules.update(dict.fromkeys(packages))\n"
        "for use in ('from kosmos_data.web.http import fetch',\n"
        '            \'from kosmos_data.web.html.extract import extract; extract(b"<p>", "")\',\n'
        '            \'from kosmos_data.web.warc import *; WarcWriter("/dev/null").write("u", "t", b"")\'):\n'
        "    try: exec(use)\n"
        "    except ModuleNotFoundError as error: assert kosmos.extras.install('web') in str(error), error\n"
        "    else: raise AssertionError(use)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr


def test_without_the_extra_one_line_says_what_to_install() -> None:
    program = """
import sys
for name in ("datatrove", "py3langid", "imagehash", "w3lib", "fastwarc", "selectolax", "ray"):
    sys.modules[name] = None
import kosmos_data, kosmos_data.web.pipeline, kosmos_data.web.ledger_report, kosmos_data.web.filters, kosmos_data.cli
from kosmos_data.web.filters import Filters
from kosmos_data.web.rules import *
for call in (lambda: Filters(TextRules(), ImageRules(), HeldOut(), {}),
             lambda: kosmos_data.web.pipeline.run([__file__], sys.argv[1] + "/out")):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program.replace("__file__", "sys.executable"), "/tmp"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('run: pip install -e "') == ran.stdout.count('[web]"\n') == 2
