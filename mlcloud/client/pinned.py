"""TLS to one certificate: the gateway's own, known by its fingerprint.

The certificate is looked at first, and only looked at: nothing is sent before it has been found to
be the right one, and then it is the only one that is trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from urllib.parse import urlsplit

from mlcloud.errors import ConnectionFailed, UsageError

LOOK_S = 10.0


def context(url: str, fingerprint: str, look_s: float = LOOK_S) -> ssl.SSLContext:
    """Raises `ConnectionFailed` where another certificate is shown, or none."""
    wanted = normal(fingerprint)
    certificate = _shown(url, look_s)
    found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
    if not hmac.compare_digest(found, wanted):
        raise ConnectionFailed(
            f"who answers at {url} is not the gateway that was asked for: its certificate has "
            f"the fingerprint {found[:16]}…, not {wanted[:16]}…; nothing was sent. Was the cluster "
            "made anew? Then ask for its new fingerprint"
        )
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False  # the certificate itself is known, its name says nothing more
    trusting.load_verify_locations(cadata=certificate)
    return trusting


def normal(fingerprint: str) -> str:
    """64 hexadecimal digits of what was written with colons, capitals or `sha256:`."""
    plain = re.sub(r"^sha-?256[:=]", "", fingerprint.strip().lower()).replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise UsageError("a fingerprint is the SHA-256 of a certificate: 64 hexadecimal digits")
    return plain


def _shown(url: str, look_s: float) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise UsageError(f"a fingerprint goes with an https:// address, not with {url}")
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    looking.check_hostname, looking.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), look_s) as plain,
            looking.wrap_socket(plain) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
    except OSError as error:
        raise ConnectionFailed(f"no gateway answers at {url} ({error})") from error
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)
