"""Imports the user's application in a process of its own, and finds its Celery app.

What would fail in all three children fails here once: an import, a name, a broker that cannot be opened. The answer
goes to standard output as one line, the path of the Celery app; what is wrong goes to standard error, as a person
should read it, with exit code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import celery

from celeriac.errors import CeleriacError

__all__ = ["ProbeFailed", "find_celery", "load", "main", "run_probe", "user_traceback"]

#: Seconds that the broker and the store may take to open.
_OPEN_DEADLINE = 15.0


class ProbeFailed(Exception):
    """The application cannot be started. The message is meant for the user."""


async def run_probe(app_path: str, celery_path: str | None, environment: Mapping[str, str]) -> str:
    """Probe in a process of its own. Returns the path of the Celery app, or raises ProbeFailed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celeriac.dev.probe", app_path),
        *([celery_path] if celery_path else []),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        answer, complaint = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode or not answer:
        module = app_path.partition(":")[0]
        raise ProbeFailed(
            complaint.decode(errors="replace") or f"The import of {module} has ended the process."
        )
    return answer.decode()


def main() -> None:
    """``python -m celeriac.dev.probe MODULE:APP [MODULE:CELERY]``."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the user's modules print while they are imported is no answer of ours
    try:
        path, app = find_celery(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
        asyncio.run(_open_once(app))
    except ProbeFailed as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(1)
    answer.write(path)
    answer.close()


def find_celery(app_path: str, celery_path: str | None) -> tuple[str, celery.Celery]:
    """The path of the Celery app that belongs to the ASGI app, and the app itself. Raises ProbeFailed."""
    module, api = load(app_path)
    if _is_celery(api):
        raise ProbeFailed(
            f"{app_path} is a Celery app. Name the API: celeriac dev MODULE:NAME --celery {celery_path or app_path}"
        )
    if celery_path is not None:
        _, app = load(celery_path)
        if not _is_celery(app):
            raise ProbeFailed(f"{celery_path} is no Celery app, but of the type {type(app).__name__}.")
        return celery_path, app
    found = {id(value): (name, value) for name, value in reversed(vars(module).items()) if _is_celery(value)}
    if len(found) == 1:
        name, app = found.popitem()[1]
        return f"{module.__name__}:{name}", app
    names = sorted(name for name, _ in found.values())
    what = f"are several Celery apps ({', '.join(names)})" if names else "is no Celery app"
    raise ProbeFailed(
        f"There {what} in {module.__name__}. "
        f"Name the one to run: celeriac dev {app_path} --celery MODULE:NAME"
    )


def _is_celery(value: object) -> bool:
    # By type(): celery.current_app is a proxy, and looking through it would create an app.
    return issubclass(type(value), celery.Celery)


def load(path: str) -> tuple[ModuleType, Any]:
    """Import ``MODULE:NAME``, and get both. Raises ProbeFailed with a hint, or with the user's own traceback."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ProbeFailed(
            f"{path!r} does not name an application. Write it as MODULE:NAME, such as main:app."
        )
    module = _import(module_name, path)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise ProbeFailed(f"There is no {name!r} in {module_name} ({module.__file__}).")
        value = getattr(value, part)
    return module, value


def _import(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module_name}.".startswith(f"{exc.name}."):
            raise ProbeFailed(
                f"There is no module {exc.name!r} in {os.getcwd()}.\n"  # noqa: PTH109
                f"Hint: run celeriac dev in the folder where `import {module_name}` works, or correct {path!r}."
            ) from None
        hint = f"Hint: {module_name} imports {exc.name!r}, which is not installed for {sys.executable}."
        raise ProbeFailed(f"{user_traceback(exc)}{hint}") from None
    except Exception as exc:  # noqa: BLE001 - the user's module may raise anything, and all of it is shown
        hint = f"Hint: {module_name} could not be imported; the last lines say where and why."
        raise ProbeFailed(f"{user_traceback(exc)}{hint}") from None


def user_traceback(exc: BaseException) -> str:
    """The traceback without our frames and those of the import machinery."""
    trimmed = traceback.TracebackException.from_exception(exc)
    current: traceback.TracebackException | None = trimmed
    while current is not None:
        frames = [frame for frame in current.stack if not _is_machinery(frame.filename)]
        current.stack = traceback.StackSummary.from_list(frames)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    text = "".join(trimmed.format())
    # Without a frame (a SyntaxError brings its place along) a heading would promise what does not come.
    return text if trimmed.stack else text.removeprefix("Traceback (most recent call last):\n")


def _is_machinery(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


async def _open_once(app: celery.Celery) -> None:
    """Open the broker and the store, so that what is wrong with them is said once."""
    if not hasattr(app, "__aenter__"):  # a plain Celery app
        return
    try:
        async with asyncio.timeout(_OPEN_DEADLINE), app:
            pass
    except TimeoutError:
        raise ProbeFailed(f"The broker did not answer within {_OPEN_DEADLINE:.0f} seconds.") from None
    except CeleriacError as exc:
        raise ProbeFailed(str(exc)) from None


if __name__ == "__main__":
    main()
