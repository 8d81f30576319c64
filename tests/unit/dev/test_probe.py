from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.dev.probe import ProbeFailed, find_celery, load


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_one_app_under_several_names_is_one(folder: Path) -> None:
    (folder / "probe_one.py").write_text(
        "import celery\nfirst = celery.Celery('x')\nsecond = first\napp = object()\n"
    )
    path, app = find_celery("probe_one:app", None)
    assert (path, app.main) == ("probe_one:first", "x")


def test_the_proxy_of_the_current_app_is_no_app(folder: Path) -> None:
    (folder / "probe_proxy.py").write_text("from celery import current_app\napp = object()\n")
    with pytest.raises(ProbeFailed, match="There is no Celery app in probe_proxy"):
        find_celery("probe_proxy:app", None)


def test_celery_option_must_name_a_celery_app(folder: Path) -> None:
    (folder / "probe_option.py").write_text("app = object()\n")
    with pytest.raises(ProbeFailed, match="probe_option:app is no Celery app, but of the type object"):
        find_celery("probe_option:app", "probe_option:app")


def test_the_celery_app_is_not_the_api(folder: Path) -> None:
    (folder / "probe_swapped.py").write_text("import celery\napp = celery.Celery('x')\n")
    with pytest.raises(ProbeFailed, match=r"probe_swapped:app is a Celery app.*--celery probe_swapped:app"):
        find_celery("probe_swapped:app", None)


def test_a_syntax_error_shows_its_place_and_no_frame_of_ours(folder: Path) -> None:
    (folder / "probe_syntax.py").write_text("app = (\n")
    with pytest.raises(ProbeFailed) as caught:
        load("probe_syntax:app")
    lines = str(caught.value).splitlines()
    assert lines[0].strip() == f'File "{folder}/probe_syntax.py", line 1'
    assert lines[-2] == "SyntaxError: '(' was never closed"
    assert lines[-1].startswith("Hint: ")


def test_causes_are_trimmed_too(folder: Path) -> None:
    (folder / "probe_cause.py").write_text(
        "import importlib\n"
        "try:\n    importlib.import_module('surely_not_there')\n"
        "except ImportError as exc:\n    raise RuntimeError('no luck') from exc\n"
    )
    with pytest.raises(ProbeFailed) as caught:
        load("probe_cause:app")
    text = str(caught.value)
    assert "RuntimeError: no luck" in text
    assert "The above exception was the direct cause" in text
    assert "<frozen importlib" not in text
    assert "celeriac/dev/probe.py" not in text
