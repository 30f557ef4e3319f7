"""What the header of a FLAC file says, beside what its frames say of themselves.

Source: RFC 9639, sections 8.2 (streaminfo) and 9.1 (frame header). The decoder believes the header:
neither another rate nor a length that is too short is an error to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

STREAMINFO_BYTES = 34
RATES_HZ = {
    1: 88200,
    2: 176400,
    3: 192000,
    4: 8000,
    5: 16000,
    6: 22050,
    7: 24000,
    8: 32000,
    9: 44100,
    10: 48000,
    11: 96000,
}
# Codes of a rate that follows the frame's header: its bytes and its unit in Hz.
RATES_BEHIND = {12: (1, 1000), 13: (2, 1), 14: (2, 10)}
# The same of the samples of a frame; one less is written.
SAMPLES_BEHIND = {6: 1, 7: 2}
# No frame of a recording is longer; the last one begins within so many bytes of the end.
LONGEST_FRAME_BYTES = 1 << 18
# The header of a frame, with a number of at most seven bytes and all that may follow it.
LONGEST_HEADER_BYTES = 16
# Metadata before the sound are few; a file that has more is damaged.
MOST_BLOCKS = 256


@dataclass(frozen=True)
class Frame:
    """A frame by its header; ``rate_hz`` is None where it refers to the file's."""

    rate_hz: int | None
    samples: int
    begins_at: int


@dataclass(frozen=True)
class FlacHeader:
    """Rate and samples by the file's header; its first and last frame, if they are found.

    ``samples`` is 0 where they are left open.
    """

    sample_rate_hz: int
    samples: int
    first: Frame | None
    last: Frame | None

    @property
    def contradiction(self) -> str | None:
        """What cannot be true; None if all agrees."""
        if self.first is None or self.first.rate_hz in (None, self.sample_rate_hz):
            return None
        return f"{self.sample_rate_hz} Hz, but its sound has {self.first.rate_hz} Hz"

    @property
    def hidden_s(self) -> float:
        """Seconds of sound behind the end that the header gives."""
        if self.last is None or not self.samples or not self.sample_rate_hz:
            return 0.0
        hidden = self.last.begins_at + self.last.samples - self.samples
        return max(0, hidden) / self.sample_rate_hz


def read(file: BinaryIO) -> FlacHeader | None:
    """Header of a FLAC file; None for another kind of file or one without sound."""
    if file.read(4) != b"fLaC":
        return None
    info = b""
    for _ in range(MOST_BLOCKS):
        head = file.read(4)
        if len(head) < 4:
            return None
        kind, length = head[0] & 0x7F, int.from_bytes(head[1:], "big")
        if kind == 0 and length == STREAMINFO_BYTES:
            info = file.read(length)
        else:
            file.seek(length, 1)
        if head[0] & 0x80:
            return _header(file, info) if len(info) == STREAMINFO_BYTES else None
    return None


def _header(file: BinaryIO, info: bytes) -> FlacHeader:
    # 20 bits of rate, 3 of channels, 5 of width, 36 of length.
    packed = int.from_bytes(info[10:18], "big")
    begin = file.tell()
    first = _frame(file.read(LONGEST_HEADER_BYTES), block_samples=None)
    end = file.seek(0, 2)
    file.seek(max(begin, end - LONGEST_FRAME_BYTES))
    last = _last_frame(file.read(), first) if first else None
    return FlacHeader(packed >> 44, packed & (1 << 36) - 1, first, last)


def _last_frame(tail: bytes, first: Frame) -> Frame | None:
    """The last frame that begins in the end of a file and is of the kind of the first one."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        frame = _frame(tail[at : at + LONGEST_HEADER_BYTES], block_samples=first.samples)
        if frame and frame.rate_hz == first.rate_hz and frame.samples <= first.samples:
            return frame
    return None


def _frame(head: bytes, *, block_samples: int | None) -> Frame | None:
    """Frame that begins with these bytes; None if none does.

    Parameters
    ----------
    block_samples : samples of each frame but the last, that frames may be counted by; None in the
        first one
    """
    if len(head) < 6 or head[0] != 0xFF or head[1] not in (0xF8, 0xF9):
        return None
    number, at = _number(head, 4)
    samples_code, rate_code = head[2] >> 4, head[2] & 15
    samples, at = _samples(samples_code, head, at)
    rate, at = _rate(rate_code, head, at)
    if samples is None or number is None or at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    counts_frames = head[1] == 0xF8
    return Frame(rate, samples, number * (block_samples or samples) if counts_frames else number)


def _number(head: bytes, at: int) -> tuple[int | None, int]:
    """Number coded as UTF-8 does it, but up to 36 bits, and where it ends."""
    lead = head[at]
    ones = 8 - (~lead & 0xFF).bit_length()
    if ones == 0:
        return lead, at + 1
    rest = head[at + 1 : at + ones]
    if ones == 1 or ones == 8 or any(byte >> 6 != 0b10 for byte in rest):
        return None, at
    number = lead & (0x7F >> ones)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, at + ones


def _samples(code: int, head: bytes, at: int) -> tuple[int | None, int]:
    if code in SAMPLES_BEHIND:
        end = at + SAMPLES_BEHIND[code]
        return int.from_bytes(head[at:end], "big") + 1, end
    if code == 0:
        return None, at
    if code == 1:
        return 192, at
    return (576 << code - 2 if code < 6 else 256 << code - 8), at


def _rate(code: int, head: bytes, at: int) -> tuple[int | None, int]:
    if code in RATES_BEHIND:
        length, unit = RATES_BEHIND[code]
        return unit * int.from_bytes(head[at : at + length], "big"), at + length
    return RATES_HZ.get(code), at


def _crc8(content: bytes) -> int:
    """Checksum of a frame's header, polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc
