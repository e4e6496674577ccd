"""An entry of a ledger."""

from components.tracking.ledger import Move

FIRST = Move(
    number=1,
    version="3",
    previous=None,
    weights_sha256="0" * 64,
    verdict="promote",
    reason="passed: lpips 0.1",
    run="abc",
    data_version="0123.dir",
    who="someone",
    time="2026-01-02T03:04:05+00:00",
)
