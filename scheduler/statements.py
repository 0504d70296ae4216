"""Signed statements: what each published engine was built from.

A statement is an in-toto Statement v1 with a SLSA provenance v1 predicate, in a DSSE envelope
signed with Ed25519. It lies beside the engine file as `<engine>.statement.json`.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from scheduler.errors import IntegrityError
from scheduler.keys import BuildSpec
from storage.digest import canonical_json, digest_of_bytes
from storage.disk import disk_errors, write_whole
from storage.records import Json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://enginefarm.dev/build/v1"
SUFFIX = ".statement.json"


@dataclass(frozen=True, slots=True)
class Made:
    """How an engine was made, as far as its statement tells."""

    build_id: str
    started_at: float
    finished_at: float
    timing_set: str
    same_as: str | None = None


class MachineKey:
    """The Ed25519 key of this machine, made at its first signature and trusted from then on.

    `folder` holds `machine.pem` (mode 0600) and `trusted/<key id>.pem`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sign(self, statement: Json) -> bytes:
        """The DSSE envelope of a statement, as JSON."""
        key = self._private_key()
        payload = canonical_json(statement)
        signature = key.sign(_pre_authentication(payload))
        envelope = {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}
            ],
        }
        return canonical_json(envelope)

    def _private_key(self) -> Ed25519PrivateKey:
        """The key of this machine; the first of several processes that make it wins."""
        path = self._folder / "machine.pem"
        with disk_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileNotFoundError):
                return self._trusted(_load_private(path))
            made = Ed25519PrivateKey.generate()
            aside = self._folder / f".machine.{secrets.token_hex(6)}.part"
            write_whole(aside, [_private_pem(made)], mode=0o600)
            try:
                # A link fails when the name exists: then another process was first.
                with suppress(FileExistsError):
                    os.link(aside, path)
            finally:
                aside.unlink()
            return self._trusted(_load_private(path))

    def _trusted(self, key: Ed25519PrivateKey) -> Ed25519PrivateKey:
        """The same key, after its public half was put among the trusted ones."""
        public = key.public_key()
        place = self._folder / "trusted" / f"{key_id(public)}.pem"
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            write_whole(place, [pem])
        return key


def trusted_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """The public keys in `folder`/trusted by their ids."""
    keys: dict[str, Ed25519PublicKey] = {}
    for path in sorted((folder / "trusted").glob("*.pem")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except ValueError as error:
            raise IntegrityError(f"{path} is no public key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise IntegrityError(f"{path} is no Ed25519 key; expected one, or remove the file")
        keys[key_id(key)] = key
    return keys


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key's DER form."""
    return digest_of_bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def statement_of(*, name: str, digest: str, spec: BuildSpec, made: Made) -> Json:
    """What an engine with this digest was built from."""
    dependencies = [
        {"name": f"model/{file.name}", "digest": {"sha256": file.digest}} for file in spec.files
    ]
    dependencies.append({"name": "timings", "digest": {"sha256": made.timing_set}})
    internal: Json = {"toolchain": spec.toolchain, "codegen": spec.codegen, "key": spec.key}
    if made.same_as is not None:
        internal["same_as"] = made.same_as
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"options": spec.options, "target": spec.target},
                "internalParameters": internal,
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": "https://enginefarm.dev/builder/embedded"},
                "metadata": {
                    "invocationId": made.build_id,
                    "startedOn": _utc(made.started_at),
                    "finishedOn": _utc(made.finished_at),
                },
            },
        },
    }


def verify_statement(
    envelope: bytes, *, digest: str, trusted: Mapping[str, Ed25519PublicKey]
) -> Json:
    """The statement in an envelope, once a trusted key signed it and it is about this digest.

    Raises IntegrityError otherwise.
    """
    payload, signatures = _opened(envelope)
    signed = _pre_authentication(payload)
    if not any(_is_signed(signed, entry, trusted) for entry in signatures):
        names = ", ".join(str(entry.get("keyid", "?"))[:12] for entry in signatures) or "nobody"
        raise IntegrityError(
            f"no trusted key signed the statement: it names {names}; "
            "expected one of the keys in the folder keys/trusted"
        )
    try:
        statement: Json = json.loads(payload)
        subjects = [subject["digest"]["sha256"] for subject in statement["subject"]]
        kinds = (statement["_type"], statement["predicateType"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the signed statement has no subject or type: {error}") from error
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise IntegrityError(f"the statement has types {kinds}; expected SLSA provenance v1")
    if digest not in subjects:
        raise IntegrityError(
            f"the statement is about {str(subjects[0])[:12]}, the engine has digest {digest[:12]}: "
            "the engine was altered, or the statement belongs to another"
        )
    return statement


def _opened(envelope: bytes) -> tuple[bytes, list[Json]]:
    """Payload and signatures of a DSSE envelope."""
    try:
        fields = json.loads(envelope)
        payload = base64.b64decode(fields["payload"], validate=True)
        signatures = [dict(entry) for entry in fields["signatures"]]
        kind = fields["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise IntegrityError(f"the statement is no DSSE envelope: {error}") from error
    if kind != PAYLOAD_TYPE:
        raise IntegrityError(f"the envelope holds {kind!r}; expected {PAYLOAD_TYPE!r}")
    return payload, signatures


def _is_signed(signed: bytes, entry: Json, trusted: Mapping[str, Ed25519PublicKey]) -> bool:
    """Whether a trusted key made this signature."""
    key = trusted.get(str(entry.get("keyid")))
    if key is None:
        return False
    try:
        key.verify(base64.b64decode(str(entry.get("sig")), validate=True), signed)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _pre_authentication(payload: bytes) -> bytes:
    """DSSE's PAE: what is signed, so that type and payload cannot be told apart differently."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _load_private(path: Path) -> Ed25519PrivateKey:
    """The private key in a file; raises FileNotFoundError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise IntegrityError(f"{path} is no private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IntegrityError(f"{path} is no Ed25519 key; move it away to have a new one made")
    return key


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    """A private key as PEM text, without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _utc(at: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
