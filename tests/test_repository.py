"""What holds for the files of the project."""

from __future__ import annotations

import itertools
import re

from tests.builders import ROOT


def test_no_file_of_the_project_names_a_machine_it_was_written_on() -> None:
    for folder, suffix in itertools.product(("bench", "launcher", "conf"), (".py", ".yaml")):
        for file in (ROOT / folder).rglob(f"*{suffix}"):
            assert not re.search(r"/(home|work|Users)/", file.read_text()), file
