"""The README's first lines of code do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from tests.acceptance.processes import Launcher, free_port, wait_until_up
from tests.acceptance.quickstart import wait_for

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_app_runs(tmp_path: Path, launcher: Launcher) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert code is not None
    (tmp_path / "main.py").write_text(code[1])
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = launcher.start(["celeriac", "dev", "main:app", "--port", str(port)], cwd=tmp_path)
    wait_until_up(f"{url}/docs", process)
    answer = httpx.post(f"{url}/greet", params={"name": "Ada"})
    assert answer.status_code == 202
    task_id = answer.json()["task_id"]
    record = wait_for(
        lambda: httpx.get(f"{url}/tasks/{task_id}").json(), lambda record: record["state"] == "SUCCESS"
    )
    assert record["result"] == "Hello, Ada!"
