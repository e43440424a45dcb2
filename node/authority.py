"""A certificate authority in a folder, for tests and for a cluster on one machine: `ca.crt`, `ca.key`, and `NODE.crt`,
`NODE.key` for each node.

Its key lies beside what it signs, so that who can read the folder can be a node: nothing for a cluster of value.
Invariant: no file of it was ever readable by anybody but its owner.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftq.node import secret_file

CA_DAYS = 3650
NODE_DAYS = 365
#: Of a certificate that ends sooner, another is made.
RENEW = timedelta(days=60)
#: Every node is reached so from its own machine.
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Authority:
    def __init__(self, folder: Path) -> None:
        """The one in `folder`, which is made with a new one when there is none. Raises OSError, and ValueError when
        what is there cannot be read."""
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.certificate.exists():
            self._create()
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._own = x509.load_pem_x509_certificate(self.certificate.read_bytes())

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def certificate_of(self, node: str) -> Path:
        return self.folder / f"{node}.crt"

    def key_of(self, node: str) -> Path:
        return self.folder / f"{node}.key"

    def issue(self, node: str, hosts: Iterable[str], days: int = NODE_DAYS) -> None:
        """A new certificate of `node`, which is reached at `hosts`, in the place of the one that it had."""
        key = ec.generate_private_key(ec.SECP256R1())
        # Peers know each other by the URI, see `replication.security`.
        named = x509.UniformResourceIdentifier(f"raftq://node/{node}")
        names = x509.SubjectAlternativeName([named, *map(_name, dict.fromkeys((*hosts, *_LOCAL)))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _builder(node, self._own.subject, key, days, authority=False)
        builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(signed_by, critical=False).sign(self._key, SHA256())
        _replace(self.key_of(node), _pem_of_key(key))
        _replace(self.certificate_of(node), certificate.public_bytes(Encoding.PEM))

    def ensure(self, node: str, hosts: Iterable[str]) -> None:
        """Issue one unless `node` has one that is good for a while."""
        try:
            found = x509.load_pem_x509_certificate(self.certificate_of(node).read_bytes())
        except FileNotFoundError:
            self.issue(node, hosts)
            return
        if found.not_valid_after_utc - datetime.now(UTC) < RENEW or not self._fits(node, found):
            self.issue(node, hosts)

    def _fits(self, node: str, certificate: x509.Certificate) -> bool:
        """The key in its place is that of the certificate: of two that are exchanged, one comes first."""
        try:
            key = load_pem_private_key(self.key_of(node).read_bytes(), None)
        except FileNotFoundError:
            return False
        return key.public_key() == certificate.public_key()

    def _create(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raftq, an authority for tests")])
        builder = _builder("raftq, an authority for tests", name, key, CA_DAYS, authority=True)
        # The key first: a certificate without its key would be taken for a whole authority.
        _replace(self.folder / "ca.key", _pem_of_key(key))
        _replace(self.certificate, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


def _builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, *, authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        # A common name holds 64 characters; what counts are the alternative names.
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of other machines may be behind.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _replace(path: Path, data: bytes) -> None:
    """Whole, and never readable by others."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    secret_file.write(beside, data)
    beside.replace(path)
