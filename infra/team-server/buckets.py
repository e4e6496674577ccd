"""Saves buckets into a folder and puts them back.

`buckets.py save STORE LISTING` fetches every object of BUCKETS into STORE/objects, each content once, under its
SHA-256, and then writes LISTING, STORE/<time>/objects.jsonl, one JSON line for each object. What an earlier listing
names with the same mark is not fetched again; contents that no listing names are removed. `buckets.py restore STORE
LISTING` puts the listed objects into buckets that are missing, empty, or hold some of them already, and computes each
content's SHA-256 again while it does.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_THREADS = 8
Mark = tuple[str, str, int, str]
"""Of an object: its bucket, key, size and ETag."""


class Damaged(Exception):  # noqa: N818 - says what is wrong, not that something is
    """A saved content is missing or has other bytes than it had."""


def _object(store: Path, sha256: str) -> Path:
    return store / "objects" / sha256[:2] / sha256


def _listed(s3: Any, bucket: str) -> Iterator[dict[str, Any]]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            yield {"bucket": bucket, "key": found["Key"], "size": found["Size"], "etag": found["ETag"]}


def _read(listing: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in listing.read_text().splitlines()]
    except ValueError as error:
        raise Damaged(f"{listing} is damaged ({error}): bring it back from a copy, or remove its folder") from error


def _mark(entry: dict[str, Any]) -> Mark:
    return entry["bucket"], entry["key"], entry["size"], entry["etag"]


def _fetch(s3: Any, store: Path, entry: dict[str, Any]) -> str | None:
    """Fetch an object into the store and return its SHA-256; None, and nothing in the store, when it is gone."""
    with tempfile.NamedTemporaryFile(dir=store / "objects") as part:
        try:
            s3.download_fileobj(entry["bucket"], entry["key"], part)
        except ClientError as error:
            if error.response["Error"]["Code"] in {"404", "NoSuchKey"}:
                return None
            raise
        part.flush()
        os.fsync(part.fileno())
        part.seek(0)
        sha256 = hashlib.file_digest(part, "sha256").hexdigest()
        target = _object(store, sha256)
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            os.link(part.name, target)
    return sha256


def _remove_all_but(named: set[str], store: Path) -> None:
    for path in list((store / "objects").rglob("*")):
        if path.is_file() and path.name not in named:
            path.unlink()


def save(s3: Any, buckets: list[str], store: Path, listing: Path) -> None:
    """Fetch what is not in the store yet, write the listing, whole, and remove what no listing names."""
    (store / "objects").mkdir(parents=True, exist_ok=True)
    earlier: dict[Mark, str] = {}
    damaged = False
    for path in sorted(store.glob(f"*/{listing.name}")):
        try:
            earlier |= {_mark(entry): entry["sha256"] for entry in _read(path)}
        except Damaged as error:
            damaged = True
            print(f"save: {error}; nothing is removed while it is there", file=sys.stderr)
    kept = {mark: sha256 for mark, sha256 in earlier.items() if _object(store, sha256).exists()}
    entries = [entry for bucket in buckets for entry in _listed(s3, bucket)]
    new = [entry for entry in entries if _mark(entry) not in kept]
    with ThreadPoolExecutor(_THREADS) as pool:
        fetched = dict(zip(map(_mark, new), pool.map(lambda entry: _fetch(s3, store, entry), new), strict=True))
    # What was deleted between the listing and the fetching is as if it had been deleted before.
    saved = [entry | {"sha256": sha256} for entry in entries if (sha256 := (kept | fetched)[_mark(entry)])]
    with tempfile.NamedTemporaryFile("w", prefix=".", dir=listing.parent, delete=False) as part:
        part.writelines(f"{json.dumps(entry)}\n" for entry in saved)
    os.chmod(part.name, 0o600)
    os.replace(part.name, listing)
    if not damaged:
        _remove_all_but({*earlier.values(), *(entry["sha256"] for entry in saved)}, store)
    print(f"{len(saved)} objects saved, {len(new)} of them fetched")


def _put_back(s3: Any, store: Path, entry: dict[str, Any]) -> None:
    path = _object(store, entry["sha256"])
    if not path.is_file():
        raise Damaged(f"{path} is missing: {entry['bucket']}/{entry['key']} cannot be put back")
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != entry["sha256"]:
            raise Damaged(f"{path} is damaged: {entry['bucket']}/{entry['key']} cannot be put back")
        content.seek(0)
        s3.upload_fileobj(content, entry["bucket"], entry["key"])


def restore(s3: Any, buckets: list[str], store: Path, listing: Path) -> None:
    """Put the listed objects into their buckets, which hold nothing else."""
    entries = [entry for entry in _read(listing) if entry["bucket"] in buckets]
    sizes = {(entry["bucket"], entry["key"]): entry["size"] for entry in entries}
    present = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in present.intersection(buckets):
        for found in _listed(s3, bucket):
            # What a restore that was interrupted has put back may be there.
            if sizes.get((bucket, found["key"])) != found["size"]:
                sys.exit(f"restore: {bucket}/{found['key']} is not of this backup: empty or remove the bucket first")
    for bucket in sorted({*buckets} - present):
        s3.create_bucket(Bucket=bucket)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda entry: _put_back(s3, store, entry), entries))
    print(f"{len(entries)} objects put back")


def main() -> None:
    """Save or restore the buckets that BUCKETS names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["save", "restore"])
    parser.add_argument("store", type=Path)
    parser.add_argument("listing", type=Path)
    options = parser.parse_args()
    # Stores that speak like S3 do not all know the checksums that newer clients send.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=2 * _THREADS,
    )
    s3 = Session().client("s3", config=config)
    work = save if options.what == "save" else restore
    try:
        work(s3, os.environ["BUCKETS"].split(), options.store, options.listing)
    except (BotoCoreError, ClientError, OSError, ValueError, Damaged) as error:
        sys.exit(f"{options.what}: {error}")


if __name__ == "__main__":
    main()
