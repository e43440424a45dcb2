"""The bytes of one connection between two nodes: from the socket to frames, and back.

Owns what lies between: TLS, the proofs of the cluster's secret, and the seal of each frame, of these what the node's
`PeerSecurity` asks for. Never waits, and never knows who is at the other end beyond what was proved.
Invariant: no frame is let through, and none goes out but the proofs themselves, before all that is asked for is proved;
what is kept of a connection is at most one frame, as far as it has come.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from raftq.replication import wire
from raftq.replication.security import SEAL_BYTES, PeerSecurity, Seals, Unproved, misnamed, sealed_of
from raftq.replication.wire import Buffer, Malformed, Refusal

#: A shorter frame is copied once more, so that it and its seal are handed over as one.
_JOINED_BYTES: Final = 16 << 10
#: What TLS holds of one frame before it is handed to the socket.
_ENCRYPTED_BYTES: Final = 256 << 10


class Transport(Protocol):
    """What is used of asyncio's transports, and of uvloop's, which are not derived from them."""

    def write(self, data: bytes | bytearray) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> Any: ...


class Channel:
    """`on_ready` is called once, when frames can be sent. Call `begin` when the connection is made, and give `decrypt`
    what arrives, and `frames` what that returns. They raise Malformed."""

    def __init__(
        self, transport: Transport, security: PeerSecurity, *, accepted: bool, on_ready: Callable[[], None]
    ) -> None:
        self._transport, self._accepted, self._on_ready = transport, accepted, on_ready
        self._secret = security.secret
        context = security.context(accepted=accepted)
        self._tls = None if context is None else _Tls(transport, context, accepted=accepted)
        self._splitter = wire.Splitter(wire.HELLO_BYTES_MAX)
        self._nonce = b""
        self._seals: Seals | None = None
        self._silent = True
        #: Frames can be sent.
        self.ready = False
        #: Something was proved: of who dialed here with a secret only that it has heard somebody prove it.
        self.proved = False

    def begin(self) -> None:
        if self._tls is None:
            self._secured()
        else:
            self._tls.shake()

    def opened(self) -> None:
        """From now on frames may be long."""
        self._splitter.limit = wire.FRAME_BYTES_MAX

    def decrypt(self, data: bytes) -> bytes:
        """What has arrived when `data` has, without TLS."""
        if self._silent:
            self._silent = False
            if self._tls is None and data[:1] in b"\x15\x16" and data[1:2] == b"\x03":
                raise Unproved("it speaks TLS, and this node does not")
        if self._tls is None:
            return data
        stood = self._tls.stands
        decrypted = self._tls.received(data)
        if self._tls.stands and not stood:
            self._secured()
        return decrypted

    def frames(self, data: bytes) -> list[memoryview]:
        """The payloads that are whole now."""
        payloads = self._splitter.feed(data)
        if self._secret is not None:
            return [content for payload in payloads if (content := self._proved(payload)) is not None]
        if not self.ready:
            raise Malformed("a frame before its time")
        return payloads

    def write(self, frame: bytes | bytearray, sealed: Buffer | None = None) -> None:
        """`sealed`: what `sealed_of` says of the payload, if that is known. Raises Malformed when it cannot be sent."""
        if self._seals is None:
            self._pass_on(frame)
            return
        payload = memoryview(frame)[wire.PREFIX_BYTES :]
        seal = self._seals.said.next(len(payload), sealed_of(payload) if sealed is None else sealed)
        if len(frame) <= _JOINED_BYTES:
            self._pass_on(frame + seal)
        else:
            self._pass_on(frame)
            self._pass_on(seal)

    def refusal(self, node: str) -> Refusal | None:
        """Why who showed this certificate is not `node`, or None."""
        return None if self._tls is None else misnamed(self._tls.certificate, node)

    def _secured(self) -> None:
        """TLS stands, or there is none."""
        if self._secret is None:
            self._be_ready()
        elif not self._accepted:
            self._nonce, opening = self._secret.open()
            self._pass_on(wire.framed(opening))

    def _be_ready(self) -> None:
        self.ready = True
        self.proved = self._secret is not None or self._tls is not None
        self._on_ready()

    def _proved(self, payload: memoryview) -> memoryview | None:
        """What a frame says, if it is not one of the proofs."""
        assert self._secret is not None
        if self._seals is not None:
            return self._seals.heard.opened(payload)
        if self._accepted:
            answer, seals = self._secret.accept(payload)
            self._pass_on(wire.framed(answer))
        else:
            seals = self._secret.answered(self._nonce, payload)
        self._seals = seals
        self._splitter.trailer = SEAL_BYTES
        self._be_ready()
        return None

    def _pass_on(self, data: bytes | bytearray) -> None:
        if self._tls is None:
            self._transport.write(data)
        else:
            self._tls.write(data)


class _Tls:
    """TLS over a transport. Not asyncio's, so that a connection is known, counted and bounded from its first moment,
    and what waits to be sent is in one place."""

    def __init__(self, transport: Transport, context: ssl.SSLContext, *, accepted: bool) -> None:
        self._transport = transport
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=accepted)
        #: The handshake is done, and this is what the other end showed in it.
        self.stands = False
        self.certificate: dict[str, Any] = {}

    def received(self, data: bytes) -> bytes:
        self._arrived.write(data)
        if not self.stands:
            self.shake()
        return self._read() if self.stands else b""

    def shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise _failed(error) from None
        finally:
            self._flush()  # also what says why not
        self.certificate = self._tls.getpeercert() or {}
        if not self.certificate:
            raise Unproved("it showed no certificate")
        self.stands = True

    def write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
                if self._leaving.pending > _ENCRYPTED_BYTES:
                    self._flush()
        except ssl.SSLError as error:
            raise _failed(error) from None
        self._flush()

    def _read(self) -> bytes:
        parts = []
        try:
            while self._arrived.pending or self._tls.pending():
                parts.append(self._tls.read(_ENCRYPTED_BYTES))
                if not parts[-1]:
                    raise Unproved("it ended TLS, and not its connection")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise _failed(error) from None
        finally:
            self._flush()
        return b"".join(parts)

    def _flush(self) -> None:
        if self._leaving.pending:
            self._transport.write(self._leaving.read())


def _failed(error: ssl.SSLError) -> Unproved:
    why = getattr(error, "verify_message", None) or error.reason or str(error)
    return Unproved(f"TLS fails: {why.lower().replace('_', ' ')}")
