"""DICOM's character sets, with and without code extensions (PS3.3 C.12.1.1.2, PS3.5 6.1.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WHOLE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
"""Sets whose bytes are read by one codec and never switched."""
_ISO_8859 = {
    100: (b"A", "iso8859_1"),
    101: (b"B", "iso8859_2"),
    109: (b"C", "iso8859_3"),
    110: (b"D", "iso8859_4"),
    144: (b"L", "iso8859_5"),
    127: (b"G", "iso8859_6"),
    126: (b"F", "iso8859_7"),
    138: (b"H", "iso8859_8"),
    148: (b"M", "iso8859_9"),
    203: (b"b", "iso8859_15"),
    166: (b"T", "iso8859_11"),
}
"""Registration number to the last byte of its escape sequence, and Python's codec."""
_MULTIPLE_BYTES = {149: (b"\x1b$)C", "euc_kr"), 58: (b"\x1b$)A", "gb2312")}
_JAPANESE = {
    87: {b"\x1b$B": (0, "iso2022_jp")},
    159: {b"\x1b$(D": (0, "iso2022_jp_1")},
    13: {b"\x1b)I": (1, "shift_jis"), b"\x1b(J": (0, "ascii")},
}
_ASCII = {b"\x1b(B": (0, "ascii")}
_ESCAPE = re.compile(rb"(\x1b\$[()].|\x1b\$.|\x1b[()-].)", re.DOTALL)
_RUN = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]+")
_DELIMITERS, _NAME_DELIMITERS = b"\\\r\n\f\t", b"^="


@dataclass(frozen=True)
class CharacterSets:
    """What the text of a data set is written in."""

    codec: str | None
    """Reads every value whole; None where bytes below and above 128 have codecs of their own."""
    upper: str | None
    """Codec of bytes from 128 on, until an escape sequence says otherwise; None where there may be none."""
    escapes: dict[bytes, tuple[int, str]]
    """Escape sequence to the half of the code table that it switches, and the codec."""

    def decode(self, value: bytes, *, is_name: bool = False) -> str:
        """Decode a value.

        Args:
            value: without padding.
            is_name: whether `^` and `=` end what an escape sequence began (PS3.5 6.1.2.5.3).

        Raises:
            UnicodeError: it is not in these character sets.
        """
        if self.codec:
            return value.decode(self.codec)
        delimiters = _DELIMITERS + (_NAME_DELIMITERS if is_name else b"")
        halves = ["ascii", self.upper]
        text = []
        for part in _ESCAPE.split(value):
            if part.startswith(b"\x1b"):
                half, codec = self._switch(part)
                halves[half] = codec
                continue
            for run in _RUN.findall(part):
                text.append(_decode_run(run, halves[run[0] >= 128]))
                if halves[0] == "ascii" and any(byte in delimiters for byte in run):
                    halves = ["ascii", self.upper]
        return "".join(text)

    def _switch(self, escape: bytes) -> tuple[int, str]:
        if escape not in self.escapes:
            raise UnicodeError(f"the escape sequence {escape[1:]!r} is of no character set that is named")
        return self.escapes[escape]


def character_sets(names: Sequence[str]) -> CharacterSets:
    """Read Specific Character Set (0008,0005).

    Raises:
        UnicodeError: it is no character set of DICOM's.
    """
    spelt = [_spelt(name) for name in names]
    if len(spelt) == 1 and spelt[0] in _WHOLE:
        return CharacterSets(_WHOLE[spelt[0]], None, {})
    numbers = [_registration(name) for name in spelt]
    first = numbers[0] if numbers else 6
    escapes = dict(_ASCII)
    for number in numbers:
        escapes |= _escapes(number)
    is_extended = any(name.startswith("ISO 2022") for name in spelt)
    return CharacterSets(None, _upper(first), escapes if is_extended else {})


def _spelt(name: str) -> str:
    """Give a defined term as the standard writes it, whatever joins its words."""
    words = re.sub(r"[ _-]+", " ", name.strip().upper()).replace("ISO IR", "ISO_IR")
    return words.replace("ISO 2022 GBK", "GBK").replace("ISO 2022 GB18030", "GB18030")


def _registration(name: str) -> int:
    number = re.fullmatch(r"(?:ISO_IR|ISO 2022 IR) ([0-9]{1,3})", name)
    if not name:
        return 6
    if not number or int(number[1]) not in (6, *_ISO_8859, *_MULTIPLE_BYTES, *_JAPANESE):
        raise UnicodeError(f"the character set {name!r} is none that can be read beside others")
    return int(number[1])


def _escapes(number: int) -> dict[bytes, tuple[int, str]]:
    if number in _ISO_8859:
        last, codec = _ISO_8859[number]
        return {b"\x1b-" + last: (1, codec)}
    if number in _MULTIPLE_BYTES:
        sequence, codec = _MULTIPLE_BYTES[number]
        return {sequence: (1, codec)}
    return _JAPANESE.get(number, {})


def _upper(number: int) -> str | None:
    return next((codec for half, codec in _escapes(number).values() if half == 1), None)


def _decode_run(run: bytes, codec: str | None) -> str:
    """Decode bytes that are all below 128, or all above."""
    if codec is None:
        raise UnicodeError(f"byte {run[0]:#x} is of no character set that is named")
    if codec.startswith("iso2022_jp"):
        start = b"\x1b$B" if codec == "iso2022_jp" else b"\x1b$(D"
        return (start + run + b"\x1b(B").decode(codec)
    if codec.startswith("iso8859") and min(run) < 0xA0:
        raise UnicodeError(f"byte {min(run):#x} is no character of {codec}")
    if codec == "shift_jis" and not all(0xA1 <= byte <= 0xDF for byte in run):
        raise UnicodeError("a byte is no half-width katakana")
    return run.decode(codec)
