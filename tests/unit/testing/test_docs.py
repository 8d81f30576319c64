"""``docs/testing.md``: each of its files is written, and its tests are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs" / "testing.md"

BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_tests_in_the_documentation_pass(tmp_path: Path) -> None:
    text = DOCS.read_text()
    files = dict(BLOCK.findall(text))
    assert len(files) == text.count("```python"), "each block says which file it is"
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    tests = len(re.findall(r"^ *(async )?def test_", text, re.MULTILINE))
    assert f"{tests} passed" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.glob("*.db*"))
