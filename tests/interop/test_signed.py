"""Messages signed by Celery's ``auth`` serializer: https://docs.celeryq.dev/en/stable/userguide/security.html"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

_ROOT = Path(__file__).parents[2]


def make_identity(folder: Path) -> None:
    """A key, and its certificate, as Celery reads them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "publisher")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))


def test_only_what_is_signed_is_run(tmp_path: Path) -> None:
    make_identity(tmp_path)
    program = [sys.executable, "-m", "tests.interop.signed_app", str(tmp_path)]
    done = subprocess.run(program, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "signed: 42" in done.stdout
    assert "unsigned: The content type 'application/json' is not in accept_content." in done.stdout
