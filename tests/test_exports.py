"""The public names: what they are, where they come from, and that nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import celeriac
import celeriac.errors

PUBLIC = [
    "Attempt",
    "Celery",
    "Progress",
    "Task",
    "TaskContext",
    "TaskEvent",
    "TaskHandle",
    "TaskRecord",
    "TaskRouter",
]


def test_the_package_exports_its_public_names_and_no_others() -> None:
    assert celeriac.__all__ == PUBLIC
    assert celeriac.__all__ == sorted(celeriac.__all__)
    for name in celeriac.__all__:
        assert getattr(celeriac, name).__doc__, name


def test_every_error_is_in_one_tree_and_its_docstring_is_its_message() -> None:
    for name in celeriac.errors.__all__:
        error = getattr(celeriac.errors, name)
        assert issubclass(error, celeriac.errors.CeleriacError)
        assert str(error()) == error.__doc__.strip().split("\n")[0]


def test_importing_celeriac_imports_no_web_framework_and_no_driver() -> None:
    script = (
        "import sys, celeriac; "
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'watchfiles', 'redis', 'aio_pika'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_methods_of_the_app_are_documented() -> None:
    own = [name for name in vars(celeriac.Celery) if not name.startswith("_")]
    undocumented = [
        name
        for name in own
        if not name.endswith("_cls") and not (getattr(celeriac.Celery, name).__doc__ or "").strip()
    ]
    assert undocumented == []
