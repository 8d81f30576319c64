"""``docs/celery-compatibility.md`` is complete: no setting of Celery is missing, and none is made up."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import celery
import pytest
from celery.app.defaults import NAMESPACES, flatten

from celeriac.config import CELERY_DEFAULTS, OWN_DEFAULTS
from celeriac.worker import unsupported

_ROOT = Path(__file__).parents[2]
_DOCS = [_ROOT / "README.md", *(_ROOT / "docs").rglob("*.md")]
_PAGE = (_ROOT / "docs" / "celery-compatibility.md").read_text()

#: Settings that Celery documents and reads, but has no default for.
_UNDECLARED = {
    "cassandra_secure_bundle_path",
    "firestore_project",
    "gcs_threadpool_maxsize",
    "override_backends",
    "redis_backend_credential_provider",
    "redis_backend_health_check_interval",
    "redis_client_name",
    "result_backend_thread_safe",
}

#: The same, put together from a command's name and one of its options (``celery.bin.base.DaemonOption``).
_DAEMONS = {
    f"{command}_{option}"
    for command in ("beat", "events", "worker")
    for option in ("executable", "gid", "logfile", "pidfile", "uid", "umask")
}

_SETTINGS = {name for name, _ in flatten(NAMESPACES)} | _UNDECLARED | _DAEMONS

_VERDICTS = {"**yes**", "**differs**", "**no**"}


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in re.split(r"(?<!\\) \|(?: |$)", line[2:])][:3] for line in lines]
    return [cells for cells in found if cells[0] not in ("setting", "feature", "---", "")]


def chapter(title: str) -> str:
    """One chapter of the page, without its heading."""
    _, _, rest = _PAGE.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


_CELERYS, _, _OURS = chapter("Settings").partition("\n### celeriac's own settings\n")
_SETTING_ROWS, _FEATURE_ROWS = rows(_CELERYS), rows(chapter("Features"))


def test_each_setting_of_celery_is_there_once_and_no_other() -> None:
    named = Counter(name for cells in _SETTING_ROWS for name in re.findall(r"`([^`]+)`", cells[0]))
    assert _SETTINGS - named.keys() == set(), "missing from the page"
    assert named.keys() - _SETTINGS == set(), "on the page, but no setting of Celery"
    assert [name for name, count in named.items() if count > 1] == []


@pytest.mark.parametrize("name", sorted(_UNDECLARED))
def test_settings_without_a_default_are_read_by_celery(name: str) -> None:
    sources = Path(celery.__file__).parent.rglob("*.py")
    assert any(name in source.read_text() for source in sources)


def test_each_row_has_a_verdict_and_a_reason_unless_it_is_yes() -> None:
    assert _SETTING_ROWS
    assert _FEATURE_ROWS
    for cells in (*_SETTING_ROWS, *_FEATURE_ROWS):
        subject, verdict, reason = cells
        assert verdict in _VERDICTS, subject
        assert verdict == "**yes**" or len(reason) > 5, f"{subject}: why?"


def test_what_has_another_default_here_is_said_to_differ() -> None:
    declared = dict(flatten(NAMESPACES))
    verdicts = {name: cells[1] for cells in _SETTING_ROWS for name in re.findall(r"`([^`]+)`", cells[0])}
    changed = {
        name
        for name, value in CELERY_DEFAULTS.items()
        # Celery takes these for what ours say: UTC, and retrying at startup as later.
        if value != declared[name].default and name not in ("timezone", "broker_connection_retry_on_startup")
    }
    assert {name for name in changed if verdicts[name] == "**yes**"} == set()


def test_what_a_worker_warns_of_is_not_said_to_work() -> None:
    verdicts = {name: cells[1] for cells in _SETTING_ROWS for name in re.findall(r"`([^`]+)`", cells[0])}
    assert [name for name, *_ in unsupported._TABLE if verdicts[name] == "**yes**"] == []


@pytest.mark.parametrize("name", sorted(OWN_DEFAULTS))
def test_settings_of_ours_are_documented(name: str) -> None:
    assert name in {cells[0].strip("`") for cells in rows(_OURS)}
    assert any(f"`{name}`" in page.read_text() for page in _DOCS)


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", _PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", _PAGE)) <= anchors
