"""A stranger at the mesh port: just enough of HTTP/2, gRPC, protobuf, bincode and XXH3 to say things that no router says.

It exists to send what is wrong on purpose: rumours, other versions, other clusters, far too much. What it writes follows
`proto/mesh.proto` and `src/cluster/codec.rs`, from which it was made independently: a mistake shows at once as a frame that
is counted as corrupted.
"""

import select
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4

# Kinds of frames, of `cluster::codec`.
SWIM = 1
# foca's messages and states that are used here.
GOSSIP = 8
SUSPECT, DOWN = 1, 2


class Stream:
    """One gRPC call on a connection of its own."""

    def __init__(self, tcp, call):
        self.tcp = tcp
        self.ended = False
        self._received = b""
        self._data = b""
        # What the other side lets us send: on the connection, on the stream.
        self._windows = [65_535, 65_535]
        self._stream_window = 65_535
        path = f"/smg.mesh.v1.Mesh/{call}"
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "mesh"),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        block = b"".join(b"\x00" + _hpack(name) + _hpack(value) for name, value in fields)
        tcp.sendall(PREFACE + _http2(SETTINGS, 0, 0, b"") + _http2(HEADERS, END_HEADERS, 1, block))

    def send(self, message, within=10.0):
        """Sends a message, as far as the other side takes it; how many bytes of it went out."""
        return self.send_raw(struct.pack(">BI", 0, len(message)) + message, within)

    def send_raw(self, data, within=10.0):
        sent = 0
        while sent < len(data) and not self.ended:
            room = min(self._windows[0], self._windows[1], 16_384, len(data) - sent)
            if room == 0:
                if not self._read(within):
                    break
                continue
            while select.select([self.tcp], [], [], 0)[0] and self._read(0):
                pass
            try:
                self.tcp.sendall(_http2(DATA, 0, 1, data[sent : sent + room]))
            except OSError:
                self.ended = True
                break
            self._windows = [window - room for window in self._windows]
            sent += room
        return sent

    def finish(self):
        """Says that nothing more will come."""
        self.tcp.sendall(_http2(DATA, END_STREAM, 1, b""))

    def message(self, within=5.0):
        """The next message of the other side; None when the stream has ended or nothing came in time."""
        while True:
            if len(self._data) >= 5:
                (length,) = struct.unpack_from(">I", self._data, 1)
                if len(self._data) >= 5 + length:
                    message, self._data = self._data[5 : 5 + length], self._data[5 + length :]
                    return message
            if self.ended or not self._read(within):
                return None

    def await_end(self, within=5.0):
        """Whether the other side ends the stream or the connection in time."""
        while not self.ended and self._read(within):
            self._data = b""
        return self.ended

    def close(self):
        self.tcp.close()

    def _read(self, within):
        """Handles one frame; whether there was one."""
        self.tcp.settimeout(max(within, 0.001))
        try:
            while len(self._received) < 9 or len(self._received) < 9 + int.from_bytes(self._received[:3], "big"):
                more = self.tcp.recv(1 << 16)
                if not more:
                    self.ended = True
                    return False
                self._received += more
        except TimeoutError:
            return False
        except OSError:
            self.ended = True
            return False
        finally:
            self.tcp.settimeout(10)
        length = int.from_bytes(self._received[:3], "big")
        kind, flags = self._received[3], self._received[4]
        stream = int.from_bytes(self._received[5:9], "big")
        payload, self._received = self._received[9 : 9 + length], self._received[9 + length :]
        self._handle(kind, flags, stream, payload)
        return True

    def _handle(self, kind, flags, stream, payload):
        if kind == DATA:
            self._data += payload
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 4:
                    self._windows[1] += value - self._stream_window
                    self._stream_window = value
            self._reply(_http2(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._reply(_http2(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._windows[0 if stream == 0 else 1] += int.from_bytes(payload, "big")
        elif kind in (RST_STREAM, GOAWAY):
            self.ended = True
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.ended = True

    def _reply(self, frame):
        try:
            self.tcp.sendall(frame)
        except OSError:
            self.ended = True


def _http2(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _hpack(text):
    raw = text.encode()
    assert len(raw) < 127, text
    return bytes([len(raw)]) + raw


# --- protobuf --------------------------------------------------------------------------------------------------------


def _varint(number):
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _bytes_field(number, value):
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def opening(cluster, name, generation, address, major=1, minor=0):
    """An `Opening`."""
    out = _varint(1 << 3) + _varint(major)
    if minor:
        out += _varint(2 << 3) + _varint(minor)
    out += _varint(3 << 3 | 1) + struct.pack("<Q", cluster)
    out += _bytes_field(4, name.encode())
    out += _varint(5 << 3 | 1) + struct.pack("<Q", generation)
    return out + _bytes_field(7, address.encode())


def of_opening(message):
    """An `Envelope` with an opening."""
    return _bytes_field(1, message)


def of_frame(frame):
    """An `Envelope` with a frame."""
    return _bytes_field(2, frame)


def fields(message):
    """A protobuf message as it stands: value by number, the last one of each."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            found[number] = varint()
        elif wire == 1:
            (found[number],) = struct.unpack_from("<Q", message, at)
            at += 8
        elif wire == 2:
            length = varint()
            found[number] = message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire}")
    return found


def cluster_of(tcp):
    """The id of the cluster that listens there, as it says itself."""
    stream = Stream(tcp, "Hello")
    stream.send(opening(0, "stranger", 1, "192.0.2.1:1"))
    stream.finish()
    answer = stream.message()
    stream.close()
    if answer is None:
        raise OSError("no answer to Hello")
    return fields(answer)[3]


# --- frames ----------------------------------------------------------------------------------------------------------


def frame(kind, cluster, payload, version=(1, 0), flags=0):
    """A frame of `cluster::codec`."""
    header = bytes([*version, kind, flags]) + struct.pack("<QI", cluster, len(payload))
    return header + struct.pack("<Q", xxh3(header + payload))[:4] + payload


class Identity:
    """A member of foca's, as `cluster::membership::identity` writes it."""

    def __init__(self, name, generation, address, port, renewal=0):
        self.name, self.generation, self.address, self.port = name, generation, address, port
        self.renewal = renewal

    def encode(self):
        raw = self.name.encode()
        octets = bytes(int(part) for part in self.address.split("."))
        number = _number(self.generation) + _number(self.renewal)
        return _number(len(raw)) + raw + number + _number(0) + octets + _number(self.port)


def rumour(source, target, about, state, incarnation=0):
    """A packet in which `source` reports to `target` that `about` is in a state (SUSPECT or DOWN)."""
    header = source.encode() + _number(0) + target.encode() + _number(GOSSIP)
    member = about.encode() + _number(incarnation) + _number(state)
    return _item(header) + struct.pack(">H", 1) + _item(member)


def _item(encoded):
    return struct.pack(">H", len(encoded)) + encoded


def _number(value):
    """An integer as bincode 2 writes it."""
    if value < 251:
        return bytes([value])
    for mark, size in ((251, 2), (252, 4), (253, 8)):
        if value < 1 << 8 * size:
            return bytes([mark]) + value.to_bytes(size, "little")
    raise ValueError(value)


# --- XXH3-64 of 17 to 240 bytes, by its specification ----------------------------------------------------------------

_MASK = (1 << 64) - 1
_PRIME = 0x9E37_79B1_85EB_CA87
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def xxh3(data):
    size = len(data)
    if not 17 <= size <= 240:
        raise ValueError(f"{size} bytes")

    def mix(at, secret):
        low, high = struct.unpack_from("<QQ", data, at)
        secret_low, secret_high = struct.unpack_from("<QQ", _SECRET, secret)
        product = (low ^ secret_low) * (high ^ secret_high)
        return (product ^ product >> 64) & _MASK

    def avalanche(hashed):
        hashed ^= hashed >> 37
        hashed = hashed * 0x1656_6791_9E37_79F9 & _MASK
        return hashed ^ hashed >> 32

    hashed = size * _PRIME & _MASK
    if size <= 128:
        for pair in range((size - 1) // 32, -1, -1):
            hashed += mix(16 * pair, 32 * pair) + mix(size - 16 * (pair + 1), 32 * pair + 16)
        return avalanche(hashed & _MASK)
    hashed = avalanche(hashed + sum(mix(16 * block, 16 * block) for block in range(8)) & _MASK)
    hashed += sum(mix(16 * block, 16 * (block - 8) + 3) for block in range(8, size // 16))
    return avalanche(hashed + mix(size - 16, 136 - 17) & _MASK)
