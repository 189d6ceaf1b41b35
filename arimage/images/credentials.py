"""Content Credentials (C2PA): written pictures signed with a user's own certificate, and manifests read.

Needs ``pip install 'arimage[c2pa]'``. Nothing is downloaded: no time stamps, no revocation lists, no remote manifests.
"""

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arimage
from arimage.errors import ArimageError, UsageError
from arimage.images.inputs import shown
from arimage.images.provenance import SOURCE_TYPE

MISSING = "Content Credentials need c2pa-python: pip install 'arimage[c2pa]'"
MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
TRACES = (b"jumd", b"c2pa")  # of the JUMBF boxes that every format holds a manifest in


@dataclass(frozen=True)
class Credentials:
    """A user's certificate and key.

    Attributes:
        certificate: the signer's certificate and those of its issuers, one after the other, PEM.
        key: its private key, PEM, not encrypted.
    """

    certificate: bytes
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        self._algorithm()

    @classmethod
    def read(cls, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> "Credentials":
        """From two PEM files.

        Raises:
            UsageError: a file cannot be read, or is no certificate or key.
            ArimageError: c2pa-python is not installed.
        """
        contents = []
        for path, kind in ((certificate, b"CERTIFICATE"), (key, b"PRIVATE KEY")):
            try:
                contents.append(Path(path).read_bytes())
            except OSError as error:
                raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from None
            if kind + b"-----" not in contents[-1]:
                raise UsageError(f"{shown(path)} holds no {kind.decode().lower()} in PEM")
        return cls(*contents)

    def sign(self, contents: bytes, format: str, source_type: str) -> bytes:
        """The contents of a picture file with a signed manifest in them.

        Args:
            format: ``PNG``, ``JPEG`` or ``WEBP``.
            source_type: how the picture came about, an IPTC digital source type such as ``trainedAlgorithmicMedia``.

        Raises:
            ArimageError: certificate and key are refused, or c2pa-python is not installed.
        """
        c2pa = _library()
        program = {"name": "arimage", "version": arimage.__version__}
        action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE + source_type, "softwareAgent": program}
        manifest = {
            "claim_generator_info": [program],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        try:
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(self._algorithm(), self.certificate, self.key, None))
            with c2pa.Context.from_dict(SETTINGS) as context, c2pa.Builder(json.dumps(manifest), context) as builder:
                builder.sign(signer, MIME_TYPES[format], io.BytesIO(contents), signed)
        except c2pa.C2paError as error:
            raise ArimageError(f"the picture cannot be signed with this certificate and key: {_line(error)}") from None
        return signed.getvalue()

    def _algorithm(self) -> str:
        """The signature algorithm of the key, as C2PA calls it."""
        _library()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self.key, None)
        except TypeError:
            raise UsageError("the key of the certificate is encrypted: decrypt it into a file of its own") from None
        except (ValueError, UnsupportedAlgorithm):
            raise UsageError("the key of the certificate is no private key in PEM") from None
        if isinstance(key, rsa.RSAPrivateKey):
            return "ps256"
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return "ed25519"
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
            return CURVES[key.curve.name]
        raise UsageError(f"the key must be RSA, Ed25519 or one of the curves {', '.join(CURVES)}")


@dataclass(frozen=True)
class Manifest:
    """What Content Credentials say of a picture.

    Attributes:
        program: that claims it.
        signer, issuer: the common name of the certificate, and the organisation that it was issued to.
        source_types: how the picture came about, IPTC digital source types.
        state: ``Trusted``, ``Valid`` (signed well by somebody who is on no list of the reader), or ``Invalid``.
        problems: what is wrong with it.
    """

    program: str
    signer: str | None
    issuer: str | None
    source_types: tuple[str, ...]
    state: str
    problems: tuple[str, ...]


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """The active manifest of a picture file, or None where there is none.

    Raises:
        ArimageError: there is one, but it cannot be read, or c2pa-python is not installed.
    """
    contents = Path(path).read_bytes()
    if not all(trace in contents for trace in TRACES):
        return None
    c2pa = _library()
    try:
        with c2pa.Context.from_dict(SETTINGS) as context:
            reader = c2pa.Reader.try_create(None, io.BytesIO(contents), None, context)
            if reader is None:
                return None
            with reader:
                store = json.loads(reader.json())
    except (c2pa.C2paError, ValueError) as error:
        raise ArimageError(f"the Content Credentials of {shown(path)} cannot be read: {_line(error)}") from None
    return _manifest(store)


def _manifest(store: dict[str, Any]) -> Manifest:
    active = store["manifests"][store["active_manifest"]]
    signature = active.get("signature_info") or {}
    programs = [" ".join(filter(None, (one.get("name"), one.get("version"))))
                for one in active.get("claim_generator_info") or []]  # fmt: skip
    actions = [
        action
        for assertion in active.get("assertions") or []
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion["data"].get("actions") or []
    ]
    types = dict.fromkeys(one["digitalSourceType"].removeprefix(SOURCE_TYPE) for one in actions
                          if one.get("digitalSourceType"))  # fmt: skip
    return Manifest(
        program=", ".join(programs) or active.get("claim_generator") or "an unknown program",
        signer=signature.get("common_name"),
        issuer=signature.get("issuer"),
        source_types=tuple(types),
        state=store.get("validation_state") or "Invalid",
        problems=tuple(one["code"] for one in store.get("validation_status") or []),
    )


def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise ArimageError(MISSING) from None
    return c2pa


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
