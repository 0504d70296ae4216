"""Statements: what a trusted key signed is believed, everything else is refused."""

from __future__ import annotations

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scheduler.errors import IntegrityError
from scheduler.statements import MachineKey, Made, statement_of, trusted_keys, verify_statement
from storage.digest import digest_of_bytes
from tests.scheduler.farm_parts import spec

DIGEST = digest_of_bytes(b"engine")
STATEMENT = statement_of(
    name="m.engine",
    digest=DIGEST,
    spec=spec(),
    made=Made("bld_1", 1_700_000_000.0, 1_700_000_010.0, "5" * 64),
)


@pytest.fixture
def envelope(tmp_path: Path) -> bytes:
    return MachineKey(tmp_path).sign(STATEMENT)


def test_the_statement_is_in_toto_with_slsa_provenance() -> None:
    assert STATEMENT["_type"] == "https://in-toto.io/Statement/v1"
    assert STATEMENT["predicateType"] == "https://slsa.dev/provenance/v1"
    assert STATEMENT["subject"] == [{"name": "m.engine", "digest": {"sha256": DIGEST}}]
    metadata = STATEMENT["predicate"]["runDetails"]["metadata"]
    assert metadata["startedOn"] == "2023-11-14T22:13:20Z"


def test_the_machine_key_is_made_once_kept_private_and_trusted(
    tmp_path: Path, envelope: bytes
) -> None:
    assert stat.S_IMODE((tmp_path / "machine.pem").stat().st_mode) == 0o600
    assert MachineKey(tmp_path).sign(STATEMENT) == envelope
    assert len(trusted_keys(tmp_path)) == 1
    assert verify_statement(envelope, digest=DIGEST, trusted=trusted_keys(tmp_path)) == STATEMENT


def test_many_first_signatures_at_once_are_made_by_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        signed = set(pool.map(lambda _: MachineKey(tmp_path).sign(STATEMENT), range(8)))
    assert len(signed) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machine.pem", "trusted"]


def test_a_statement_about_another_engine_is_refused(tmp_path: Path, envelope: bytes) -> None:
    with pytest.raises(IntegrityError, match="altered"):
        verify_statement(envelope, digest=digest_of_bytes(b"other"), trusted=trusted_keys(tmp_path))


def test_a_key_that_nobody_trusts_is_refused(tmp_path: Path, envelope: bytes) -> None:
    stranger = MachineKey(tmp_path / "stranger").sign(STATEMENT)
    with pytest.raises(IntegrityError, match="no trusted key"):
        verify_statement(stranger, digest=DIGEST, trusted=trusted_keys(tmp_path))


def test_any_change_to_the_payload_is_refused(tmp_path: Path, envelope: bytes) -> None:
    fields = json.loads(envelope)
    payload = bytearray(base64.b64decode(fields["payload"]))
    for position in range(0, len(payload), 37):
        changed = bytearray(payload)
        changed[position] ^= 1
        altered = {**fields, "payload": base64.b64encode(changed).decode()}
        with pytest.raises(IntegrityError):
            verify_statement(
                json.dumps(altered).encode(), digest=DIGEST, trusted=trusted_keys(tmp_path)
            )


@pytest.mark.parametrize(
    "junk",
    [b"", b"{}", b"[]", b"null", b'{"payload": 3, "payloadType": "", "signatures": []}', b"\xff"],
)
def test_what_is_no_envelope_is_refused(tmp_path: Path, envelope: bytes, junk: bytes) -> None:
    with pytest.raises(IntegrityError):
        verify_statement(junk, digest=DIGEST, trusted=trusted_keys(tmp_path))


def test_signed_words_that_are_no_provenance_are_refused(tmp_path: Path) -> None:
    for words in ({}, {**STATEMENT, "_type": "x"}, {**STATEMENT, "subject": 3}):
        with pytest.raises(IntegrityError):
            verify_statement(
                MachineKey(tmp_path).sign(words), digest=DIGEST, trusted=trusted_keys(tmp_path)
            )


def test_a_file_among_the_trusted_keys_that_is_no_key_is_named(
    tmp_path: Path, envelope: bytes
) -> None:
    (tmp_path / "trusted" / "letter.pem").write_bytes(b"hello")
    with pytest.raises(IntegrityError, match=r"letter\.pem"):
        trusted_keys(tmp_path)
