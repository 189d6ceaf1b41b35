"""Content Credentials: written pictures signed with a user's own certificate, and read again."""

import datetime
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from arimage.cli.main import run
from arimage.errors import ArimageError, UsageError
from arimage.images.credentials import Credentials, read_manifest
from arimage.images.opening import open_picture
from arimage.images.provenance import read_recipe
from tests.conftest import photo

QUICK = ("--steps", "1", "--size", "64", "--seed", "1", "--no-preview-grid", "-q")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A certificate with its issuer's, and its key, as PEM files."""
    pytest.importorskip("c2pa", reason="arimage[c2pa] is not installed")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = tmp_path_factory.mktemp("certificate")
    issuer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate("A. Painter", key, issuer) + certificate("The tests", issuer, issuer)
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "chain.pem", folder / "key.pem"


def certificate(name, key, issuer):
    """One for signing, or where it issues itself, for issuing."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(common):
        parts = (NameOID.COMMON_NAME, common), (NameOID.ORGANIZATION_NAME, "Tests Ltd")
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    now, issues = datetime.datetime.now(datetime.UTC), key is issuer
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("The tests"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(issues, None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not issues, key_cert_sign=issues, crl_sign=issues, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if not issues:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, checkpoint_folder):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        model = () if arguments[0] == "inspect" else ("--model", str(checkpoint_folder))
        with pytest.raises(SystemExit) as ended:
            run([*map(str, arguments), *model])
        return ended.value.code or 0, *capsys.readouterr()

    return call


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_signed_picture_says_who_made_it_and_how(pipeline, files, tmp_path, suffix):
    """Its pixels and its recipe are those of the picture that is not signed."""
    made = pipeline.generate("a fox", size=64, steps=1, seed=1, preview_grid=False)[0]
    path = made.save(tmp_path / f"signed.{suffix}", credentials=Credentials.read(*files))
    plain = made.save(tmp_path / f"plain.{suffix}")
    manifest = read_manifest(path)
    assert (manifest.signer, manifest.issuer) == ("A. Painter", "Tests Ltd")
    assert (manifest.state, manifest.problems) == ("Valid", ("signingCredential.untrusted",))
    assert manifest.source_types == ("trainedAlgorithmicMedia",)
    assert manifest.program.startswith("arimage ")
    assert read_manifest(plain) is None
    assert read_recipe(path) == made.recipe
    assert np.array_equal(np.asarray(open_picture(path).rgb), np.asarray(open_picture(plain).rgb))
    assert made.to_bytes("png", credentials=Credentials.read(*files))[:4] == b"\x89PNG"


def test_a_signed_picture_that_was_changed_is_told(pipeline, files, tmp_path):
    made = pipeline.edit(photo(64, 64), "x", steps=1, seed=1)[0]
    path = made.save(tmp_path / "signed.png", credentials=Credentials.read(*files))
    assert read_manifest(path).source_types == ("compositeWithTrainedAlgorithmicMedia",)
    contents = bytearray(path.read_bytes())
    contents[contents.rindex(b"IDAT") + 8] ^= 1
    path.write_bytes(contents)
    manifest = read_manifest(path)
    assert manifest.state == "Invalid"
    assert "assertion.dataHash.mismatch" in manifest.problems


def test_the_commands_sign_and_inspect_shows_it(command, files, monkeypatch):
    chain, key = files
    assert command("generate", "a fox", "-o", "fox.png", "--c2pa-cert", chain, "--c2pa-key", key, *QUICK)[0] == 0
    _, out, err = command("inspect", "fox.png")
    assert "prompt: a fox" in out
    assert "content_credentials: {'program': 'arimage" in out
    assert "trainedAlgorithmicMedia" in out
    assert err == ""
    shown = json.loads(command("inspect", "fox.png", "--json")[1])
    assert shown["seed"] == 1
    assert shown["content_credentials"]["signer"] == "A. Painter"
    monkeypatch.setenv("ARIMAGE_C2PA_CERT", str(chain))
    monkeypatch.setenv("ARIMAGE_C2PA_KEY", str(key))
    assert command("edit", "fox.png", "blue", "-o", "blue.jpg", "--steps", "1", "-q")[0] == 0
    assert read_manifest("blue.jpg").state == "Valid"


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("chain.pem", None, "--c2pa-key is missing: signing needs both"),
        ("nowhere.pem", "key.pem", "nowhere.pem cannot be read: No such file or directory"),
        ("key.pem", "key.pem", "key.pem holds no certificate in PEM"),
        ("chain.pem", "chain.pem", "chain.pem holds no private key in PEM"),
        ("chain.pem", "damaged.pem", "the key of the certificate is no private key in PEM"),
        ("chain.pem", "encrypted.pem", "the key of the certificate is encrypted"),
    ],
)
def test_wrong_certificates_are_told_in_one_line(command, files, certificate, key, message):
    from cryptography.hazmat.primitives import serialization

    folder = files[0].parent
    (folder / "damaged.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    private = serialization.load_pem_private_key(files[1].read_bytes(), None)
    (folder / "encrypted.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    given = ["--c2pa-cert", folder / certificate, *([] if key is None else ["--c2pa-key", folder / key])]
    code, _, err = command("generate", "x", "-o", "x.png", *given, *QUICK)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_a_key_of_another_certificate_is_refused(files):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(ArimageError, match="cannot be signed with this certificate and key"):
        Credentials(files[0].read_bytes(), other).sign(buffer.getvalue(), "PNG", "trainedAlgorithmicMedia")


def test_without_the_package_one_line_says_what_to_install(command, tmp_path, monkeypatch):
    """Also to whoever inspects a picture that carries Content Credentials; others are shown as ever."""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    for name in ("chain.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    code, _, err = command("generate", "x", "-o", "x.png", "--c2pa-cert", "chain.pem", "--c2pa-key", "key.pem", *QUICK)
    assert (code, err) == (
        1, "arimage: Content Credentials need c2pa-python: pip install 'arimage[c2pa]'\n"
    )  # fmt: skip
    photo(8, 8).save("plain.png")
    assert command("inspect", "plain.png")[2] == ""
    (tmp_path / "signed.png").write_bytes((tmp_path / "plain.png").read_bytes() + b"caBXjumbjumdc2pa")
    code, out, err = command("inspect", "signed.png")
    assert code == 0
    assert out.startswith("signed.png carries no arimage recipe")
    assert err.startswith("note: signed.png carries Content Credentials that are not shown: ")
    assert "pip install 'arimage[c2pa]'" in err


def test_a_key_that_c2pa_does_not_know_is_told(files):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    odd = ec.generate_private_key(ec.SECP256K1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(UsageError, match="the key must be RSA, Ed25519 or one of the curves secp256r1"):
        Credentials(files[0].read_bytes(), odd)
