"""Files of an import: opened, taken out of zip archives, and decoded, in bounded memory."""

from __future__ import annotations

import codecs
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from services.imports.records import DAMAGED, UnreadableFile

CHUNK_BYTES: Final = 65_536
#: As much of a file as its form and encoding are recognised by.
SAMPLE_BYTES: Final = 262_144
#: Longer lines are no records.
MAX_LINE_CHARS: Final = 8_000_000
#: Text is compressed to a tenth, seldom to a fiftieth; what unpacks to more than this is made to fill a disk.
MAX_COMPRESSION: Final = 200
#: The files of archives that are read, the first that is there: OpenAI's and Anthropic's, Telegram's, WhatsApp's.
_KNOWN_MEMBERS: Final = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        r"conversations(-\d+)?\.json",
        r"result\.json",
        r"_chat\.txt|whatsapp.*\.txt",
        r".*\.(jsonl|json|csv|txt)",
    )
)
#: Errors of a damaged or encrypted archive, and of a disk.
_READ_ERRORS: Final = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HANDLER: Final = "keepsake-damaged"


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; text None: it is too long."""

    number: int
    text: str | None


class ExportFile:
    """One text of an export: a file, or a member of an archive; it can be read more than once.

    Args:
        path: the file on disk.
        member: the member of the zip archive that it is.
        encoding: its encoding, where it is named; recognised otherwise.

    Attributes:
        name: for people.
        session: what a conversation without an id is called: the archive's name, where the member's says nothing.
        size: bytes, uncompressed.
        position: bytes read so far.
    """

    def __init__(self, path: Path, member: zipfile.ZipInfo | None = None, encoding: str | None = None) -> None:
        self._path = path
        self._member = member
        self.name = path.name if member is None else PurePosixPath(member.filename).name
        self.size = path.stat().st_size if member is None else member.file_size
        self.position = 0
        stem = re.sub(r" \(\d+\)$", "", Path(self.name).stem)  # as browsers name a second download
        self.session = path.stem if stem in ("_chat", "result", "conversations") else stem
        sample, self._complete = self._sample()
        self.encoding = _checked(encoding) if encoding else recognised_encoding(sample, self.name)
        self.sample = "".join(_decoded(io.BytesIO(sample), self.encoding, final=False))

    @property
    def sample_is_all(self) -> bool:
        """Whether the sample is the whole file."""
        return self._complete

    def text(self) -> Iterator[str]:
        """The decoded text, in pieces."""
        self.position = 0
        with self._opened() as stream:
            yield from _decoded(_Counting(stream, self), self.encoding)

    def lines(self) -> Iterator[Line]:
        """The lines, by line feeds alone: other separators are text."""
        number, rest, too_long = 1, "", False
        for piece in self.text():
            first, *others = piece.split("\n")
            rest += first
            for following in others:
                yield Line(number, None if too_long else rest.removesuffix("\r"))
                number, rest, too_long = number + 1, following, False
            if len(rest) > MAX_LINE_CHARS:
                rest, too_long = "", True
        if rest or too_long:
            yield Line(number, None if too_long else rest.removesuffix("\r"))

    def _sample(self) -> tuple[bytes, bool]:
        with self._opened() as stream:
            sample = stream.read(SAMPLE_BYTES + 1)
        return sample[:SAMPLE_BYTES], len(sample) <= SAMPLE_BYTES

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            if self._member is None:
                with self._path.open("rb") as stream:
                    yield stream
            else:
                with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as stream:
                    yield stream
        except _READ_ERRORS as error:
            raise UnreadableFile(f"{self.name} cannot be read: {error}") from error


class _Counting:
    """A binary stream that keeps the file's position."""

    def __init__(self, stream: IO[bytes], file: ExportFile) -> None:
        self._stream = stream
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._file.position += len(data)
        return data


def open_export(path: Path, encoding: str | None = None) -> list[ExportFile]:
    """The texts to import of a file: itself, or members of a zip archive, which is recognised by its content.

    Nothing is unpacked to disk, so the names in an archive are never paths here.

    Raises:
        UnreadableFile: it is no file that can be read, or an archive without any.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic != b"PK\x03\x04":
            return [ExportFile(path, encoding=encoding)]
        with zipfile.ZipFile(path) as archive:
            members = _chosen(archive.infolist(), path)
    except _READ_ERRORS as error:
        raise UnreadableFile(f"{path.name} cannot be read: {error}") from error
    return [ExportFile(path, member, encoding) for member in members]


def _chosen(members: list[zipfile.ZipInfo], path: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive that hold conversations: those of known names, or else the only text."""
    texts = [one for one in members if not one.is_dir() and "__MACOSX" not in one.filename]
    for form in _KNOWN_MEMBERS:
        found = [one for one in texts if form.fullmatch(PurePosixPath(one.filename).name)]
        if not found:
            continue
        if len(found) > 1 and form is _KNOWN_MEMBERS[-1] and not _all_jsonl(found):
            names = ", ".join(one.filename for one in found[:6])
            raise UnreadableFile(f"{path.name} has {len(found)} texts ({names}, ...): unpack it, and name one of them")
        for one in found:
            if one.file_size > MAX_COMPRESSION * max(one.compress_size, CHUNK_BYTES):
                raise UnreadableFile(
                    f"{path.name}: {one.filename} unpacks to more than {MAX_COMPRESSION} times its size"
                )
        return sorted(found, key=lambda one: one.filename)
    raise UnreadableFile(
        f"{path.name} is an archive without conversations.json, result.json, .txt, .json, .jsonl or .csv"
    )


def _all_jsonl(members: list[zipfile.ZipInfo]) -> bool:
    return all(one.filename.lower().endswith(".jsonl") for one in members)


def recognised_encoding(sample: bytes, name: str) -> str:
    """The encoding of a text by its first bytes: UTF-8, UTF-16 or UTF-32.

    Raises:
        UnreadableFile: it is none of these, and must be named.
    """
    for bom, encoding in _BOMS:
        if sample.startswith(bom):
            return encoding
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = sample[first::2].count(0)
        if zeros > len(sample) / 8 and sample[1 - first :: 2].count(0) < zeros / 8:
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError as error:
        # Not guessed: GB 18030, Korean and Cyrillic bytes can be read as each other, and would be stored so.
        raise UnreadableFile(
            f"{name} is not UTF-8 (byte {error.start}): name its encoding, such as --encoding gb18030 or cp1252"
        ) from None
    return "utf-8"


def _checked(encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding)
        "".encode(encoding)  # codecs that do not encode texts, such as zlib's, fail at it
    except (LookupError, TypeError, ValueError):
        raise UnreadableFile(f"--encoding {encoding}: there is no such encoding of texts") from None
    return "utf-8-sig" if codec.name == "utf-8" else codec.name


def _decoded(stream: Any, encoding: str, *, final: bool = True) -> Iterator[str]:
    """The text of a stream, in pieces; bytes that are none become `DAMAGED`."""
    codecs.register_error(_HANDLER, lambda error: (DAMAGED, getattr(error, "end", 1)))
    decoder = codecs.getincrementaldecoder(encoding)(errors=_HANDLER)
    while data := stream.read(CHUNK_BYTES):
        yield decoder.decode(data)
    if final:
        yield decoder.decode(b"", final=True)
