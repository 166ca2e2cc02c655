"""The manifest of a corpus: its schema, its file, and the content hash that names the corpus.

``manifest.json`` is sealed (``armillary.recipe.sealed``) since format 2, so that a changed digit is detected. A
manifest of format 1 has no seal; its content hash still covers the checksums, the domains and the split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
from pydantic import Field, ValidationError

from armillary.files import write_json
from armillary.recipe import ArmillaryError, DamagedFileError, canonical_hash, first_problem, read_sealed, write_sealed
from armillary.recipe import Document as RecipePart

FORMAT = 2  # 2: split by document with near duplicates on one side, sealed manifest; 1: split by part, no seal
SEALED_SINCE = 2
REMEDY = "delete the folder and build the corpus again"


class ShardFile(RecipePart):
    """A file of the corpus: path relative to its folder, size in bytes, SHA-256."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str


class DomainManifest(RecipePart):
    """One domain: its source and its counts.

    ``documents`` counts the parts after cutting. Each part is in training, in validation, ``set_aside`` (held out, but
    not kept for validation) or one of ``duplicates`` (dropped). ``whole_documents`` counts the distinct documents
    before cutting, and ``cut`` those that were cut.

    ``near_duplicates`` counts documents that resemble another document of the corpus. ``near_duplicates_moved`` counts
    those of them that are on the other side of the split than their own hash would decide. ``near_duplicates_in``
    counts those that resemble a document of another domain, by that domain. All four are None in a corpus of format 1.

    ``*_bytes`` are UTF-8 bytes of text. ``problem_count`` counts unusable inputs; ``problems`` holds one line per kind
    of problem.
    """

    source: str
    licence: str | None
    train: bool
    documents: int
    cut: int
    duplicates: int
    set_aside: int
    train_documents: int
    train_tokens: int
    train_bytes: int
    validation_documents: int
    validation_tokens: int
    validation_bytes: int
    files: tuple[ShardFile, ...]
    problem_count: int
    problems: tuple[str, ...]
    whole_documents: int | None = None
    near_duplicates: int | None = None
    near_duplicates_moved: int | None = None
    near_duplicates_in: dict[str, int] | None = None


class Manifest(RecipePart):
    """The content of a corpus folder; ``hash`` depends only on the content, not on the text's sources."""

    format: int = FORMAT
    hash: str
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    validation_share: float
    validation_chars: int
    max_document_chars: int
    tokenizer: ShardFile
    domains: dict[str, DomainManifest]

    @property
    def files(self) -> list[ShardFile]:
        """Every file of the corpus except the manifest."""
        return [self.tokenizer, *(file for domain in self.domains.values() for file in domain.files)]

    def content_hash(self) -> str:
        """The hash of tokenizer, shards, domains and split: everything that a run is trained on, and nothing else.

        Without shards it also covers the token that ends a text; otherwise the shards contain this token.
        """
        return canonical_hash(
            {
                **({} if self.domains else {"end": self.end_of_text_id}),
                "format": self.format,
                "tokenizer": self.tokenizer.sha256,
                "domains": [[name, d.train, [file.sha256 for file in d.files]] for name, d in self.domains.items()],
                "split": {
                    "validation_share": self.validation_share,
                    "validation_chars": self.validation_chars,
                    "max_document_chars": self.max_document_chars,
                },
            }
        )


def shard_name(domain: str) -> str:
    """File name of a domain: its name, with characters that a path cannot hold percent-encoded."""
    return quote(domain, safe="")


def shard_paths(domain: str, train: bool) -> dict[str, str]:
    """Files of a domain relative to the corpus folder: ``train`` (of a training domain), ``validation``, ``bytes``."""
    name = shard_name(domain)
    held_out = {"validation": f"validation/{name}.bin", "bytes": f"validation/{name}.bytes"}
    return {"train": f"train/{name}.bin", **held_out} if train else held_out


def is_hash(value: object) -> bool:
    """Whether ``value`` has the form of a corpus hash, which is also the name of the corpus's folder."""
    return isinstance(value, str) and len(value) == 16 and set(value) <= set("0123456789abcdef")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder.

    Raises:
        DamagedFileError: the folder has no manifest, or one that is torn, edited or contradicts itself.
        ForeignFileError: it is of a newer format.
        ArmillaryError: it cannot be read.
    """
    file = folder / "manifest.json"
    try:
        fields = read_sealed(file, "corpus manifest", FORMAT, REMEDY, sealed_since=SEALED_SINCE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedFileError(f"{file}: is missing, so the folder is not a corpus; {REMEDY}") from error
    except OSError as error:
        raise ArmillaryError(f"{file}: cannot be read ({error.strerror}); make it readable and try again") from error
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise DamagedFileError(f"{file}: {first_problem(error)}; {REMEDY}") from error
    name = folder.absolute().name
    if is_hash(name) and name != manifest.hash:
        raise DamagedFileError(
            f"{file}: belongs to corpus {manifest.hash}, not to the one that its folder is named after; {REMEDY}"
        )
    if wrong := _contradiction(manifest):
        raise DamagedFileError(f"{file}: {wrong}; {REMEDY}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in the manifest's own format."""
    fields = manifest.model_dump(mode="json")
    write = write_sealed if manifest.format >= SEALED_SINCE else write_json
    write(folder / "manifest.json", fields)


def _contradiction(manifest: Manifest) -> str | None:
    if manifest.hash != manifest.content_hash():
        return f"hash: is {manifest.hash}, but the files it lists have {manifest.content_hash()} (edited by hand)"
    if manifest.tokenizer.path != "tokenizer.json":
        return f"tokenizer.path: is {manifest.tokenizer.path!r}, expected 'tokenizer.json'"
    if not 0 <= manifest.end_of_text_id < manifest.vocab_size:
        return f"end_of_text_id: {manifest.end_of_text_id} is not below vocab_size {manifest.vocab_size}"
    width = np.dtype(manifest.dtype).itemsize
    for name, domain in manifest.domains.items():
        expected = shard_paths(name, domain.train)
        sizes = {file.path: file.bytes for file in domain.files}
        if list(sizes) != list(expected.values()):
            return f"domains.{name}.files: are {', '.join(sizes)}, expected {', '.join(expected.values())}"
        tokens = {
            "train_tokens": (domain.train_tokens * width, sizes.get(expected.get("train", ""), 0)),
            "validation_tokens": (domain.validation_tokens * width, sizes[expected["validation"]]),
            "validation_tokens ": (domain.validation_tokens * 4, sizes[expected["bytes"]]),
        }
        for field, (bytes_, size) in tokens.items():
            if bytes_ != size:
                return f"domains.{name}.{field.strip()}: means {bytes_} bytes, but the shard has {size}"
    return None
