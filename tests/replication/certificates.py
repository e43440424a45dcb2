"""Certificates of a CA that is made for a test, and the contexts that peers use them with."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_KEY_USAGE = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
     "decipher_only"), False
)  # fmt: skip


class Authority:
    """A CA, and the files of what it signs in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name, self._number = folder, name, 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._made(self._subject, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **_KEY_USAGE)
        self.file = folder / f"{name}.pem"
        self._write(self.file, made.add_extension(usage, critical=True))

    def tls(self, *names: str, days: int = 30, versions: ssl.TLSVersion | None = None) -> Tls:
        """Of a node with a certificate for `names`, each a host or, with a colon in it, an URI."""
        self._number += 1
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        made = self._made(subject, key, days)
        if names:
            alternatives = [x509.UniformResourceIdentifier(n) if ":" in n else x509.DNSName(n) for n in names]
            made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = self._folder / f"{self._name}-{self._number}.pem"
        self._write(certificate, made)
        keyed = certificate.with_suffix(".key")
        form = serialization.PrivateFormat.PKCS8
        keyed.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return Tls(self.file, certificate, keyed, versions)

    def _made(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 30) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def _write(self, path: Path, made: x509.CertificateBuilder) -> None:
        path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


class Tls:
    """`PeerTls` of one node."""

    def __init__(self, ca: Path, certificate: Path, key: Path, versions: ssl.TLSVersion | None) -> None:
        self.ca, self.certificate, self.key, self._version = ca, certificate, key, versions
        self.asked = 0

    def server_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: int) -> ssl.SSLContext:
        self.asked += 1
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        if self._version is not None:
            context.maximum_version = self._version
        return context
