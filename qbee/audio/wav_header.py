"""What the header of a WAV file says of itself, and whether it can be true."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# Bits of the compressed kinds that libsndfile reads without asking for them: ADPCM of Microsoft,
# A-law, mu-law, ADPCM of IMA, G.723 and G.721.
COMPRESSED_BITS = {0x02: (4,), 0x06: (8,), 0x07: (8,), 0x11: (4,), 0x14: (3, 5), 0x40: (4,)}
# A data chunk of this length or more, or of none, was never completed by the program that wrote it.
OPEN_LENGTH_BYTES = 0x7FFFF000
MOST_PADDING_BYTES = 1 << 16
# Chunks before the data are few and small; a header that goes on and on is damaged.
MOST_CHUNKS = 256


@dataclass(frozen=True)
class WavHeader:
    """The numbers of a WAV header, as they are in the file.

    ``data_bytes`` is the length of the sound by the header, ``behind_bytes`` what the file has
    from its beginning on.
    """

    kind: int
    channels: int
    sample_rate_hz: int
    byte_rate: int
    block_bytes: int
    bits: int
    data_bytes: int
    behind_bytes: int
    follows: bytes

    @property
    def is_unfinished(self) -> bool:
        """Whether it says that there is no sound, but something follows."""
        return self.data_bytes == 0 and self.behind_bytes > self.block_bytes > 0

    @property
    def contradiction(self) -> str | None:
        """What cannot be true; None if all agrees or is left blank."""
        if self.kind in COMPRESSED_BITS and self.bits not in (0, *COMPRESSED_BITS[self.kind]):
            return f"sound of its kind, {self.kind}, does not have {self.bits} bits"
        if self.kind not in (PCM, FLOAT, EXTENSIBLE) or not (self.block_bytes and self.byte_rate):
            return None
        block_bytes = self.channels * -(-self.bits // 8)
        if self.block_bytes != block_bytes:
            return (
                f"{self.channels} channels of {self.bits} bits are {block_bytes} bytes a sample, "
                f"not {self.block_bytes}"
            )
        if self.byte_rate != self.sample_rate_hz * block_bytes:
            return (
                f"{self.sample_rate_hz} Hz of {block_bytes} bytes are "
                f"{self.sample_rate_hz * block_bytes} bytes a second, not {self.byte_rate}"
            )
        return None

    @property
    def hidden_s(self) -> float:
        """Seconds of sound that seem to lie behind the end that the header gives.

        The 32-bit length of a file of 4 GiB or more has wrapped around, or the header was written
        before the end of the recording. Chunks that may follow the sound have names of letters and
        end within the file.
        """
        hidden = self.behind_bytes - self.data_bytes - self.data_bytes % 2
        name, length = self.follows[:4], int.from_bytes(self.follows[4:], "little")
        is_named = name.isascii() and name.decode("ascii", "replace").isprintable()
        is_chunk = is_named and 8 + length <= hidden
        # Some recorders fill the last block of their card.
        is_padding = hidden < MOST_PADDING_BYTES and not any(self.follows)
        if hidden < max(self.block_bytes, 8) or is_chunk or is_padding or self.byte_rate <= 0:
            return 0.0
        return hidden / self.byte_rate


def read(file: BinaryIO) -> WavHeader | None:
    """Header of a WAV file; None for another kind of file or a header without sound.

    Files of the kinds RF64 and W64 have 64-bit lengths of their own and are not looked into.
    """
    start = file.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return None
    form = b""
    for _ in range(MOST_CHUNKS):
        name, length = _chunk(file)
        if name == b"fmt ":
            form = file.read(min(length, 40))
            file.seek(length - len(form) + length % 2, 1)
        elif name == b"data" and len(form) >= 16:
            return _header(file, form, length)
        elif name is None:
            return None
        else:
            file.seek(length + length % 2, 1)
    return None


def _chunk(file: BinaryIO) -> tuple[bytes | None, int]:
    """Name and length of the chunk that begins here; None at the end of the file."""
    head = file.read(8)
    if len(head) < 8:
        return None, 0
    return head[:4], struct.unpack("<I", head[4:])[0]


def _header(file: BinaryIO, form: bytes, data_bytes: int) -> WavHeader:
    begin = file.tell()
    end = file.seek(0, 2)
    file.seek(min(begin + data_bytes + data_bytes % 2, end))
    kind, channels, rate, byte_rate, block_bytes, bits = struct.unpack("<HHIIHH", form[:16])
    return WavHeader(
        kind=kind,
        channels=channels,
        sample_rate_hz=rate,
        byte_rate=byte_rate,
        block_bytes=block_bytes,
        bits=bits,
        data_bytes=data_bytes,
        behind_bytes=end - begin,
        follows=file.read(8),
    )
