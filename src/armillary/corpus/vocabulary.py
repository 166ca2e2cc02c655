"""A corpus without text: a tokenizer and the end of its texts, to which supervised examples belong.

A run over examples needs no domains. It validates on held-out examples instead of windows of domains.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from armillary.corpus.manifest import Manifest, ShardFile, write_manifest
from armillary.corpus.shards import Corpus
from armillary.corpus.tokenizer import Encoder, find_end
from armillary.files import aside, sync, write_file
from armillary.recipe import ArmillaryError


def write_vocabulary(root: Path, tokenizer_json: str, end: str) -> Corpus:
    """Write the corpus of a tokenizer under ``root``, in a folder named by its hash, and open it.

    ``end`` is the special token that ends an example. The same tokenizer and end written again are the same corpus.

    Raises:
        UsageError: ``end`` is not a special token of the tokenizer.
        DamagedFileError, ForeignFileError: the folder exists with other content.
        ArmillaryError: it cannot be written.
    """
    data = tokenizer_json.encode()
    encoder = Encoder(tokenizer_json, find_end(tokenizer_json, end, "tokenizer", "the end of an example"))
    manifest = Manifest(
        hash="",
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end,
        end_of_text_id=encoder.end_id,
        validation_share=0.0,
        validation_chars=0,
        max_document_chars=0,
        tokenizer=ShardFile(path="tokenizer.json", bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        domains={},
    )
    manifest = manifest.model_copy(update={"hash": manifest.content_hash()})
    folder = root / manifest.hash
    if not (folder / "manifest.json").exists():
        hidden = aside(folder)
        try:
            write_file(hidden / "tokenizer.json", data)
            write_manifest(hidden, manifest)
            sync(hidden)
            hidden.rename(folder)
            sync(root)
        except OSError as error:
            if not (folder / "manifest.json").exists():
                raise ArmillaryError(
                    f"{folder}: cannot be written ({error.strerror}); free space or choose another disk"
                ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return Corpus.open(folder)
