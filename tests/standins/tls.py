"""A certificate that nobody trusts until it is named."""

import ssl
import subprocess
from pathlib import Path


def loopback_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for the loopback interface; return what a server needs, and the file that clients trust."""
    key, made = folder / "key.pem", folder / "ca.crt"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*words.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made
