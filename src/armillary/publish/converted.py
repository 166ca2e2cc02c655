"""A conversion whose loss is measured: the losses before and after are in the card of the new folder.

The new folder is a publication: lineage with the conversion and the new hashes, card, and ``SHA256SUMS``. The lineage
of a source that is a publication goes on; that of any other says that its training is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from armillary.corpus import Corpus
from armillary.evaluate.losses import DomainLoss, calibration_tokens, compare_losses
from armillary.model import Converted, ConvertOptions, Source, convert, open_model
from armillary.publish import ledger
from armillary.publish.export import LINEAGE, check_lineage
from armillary.publish.plain import facts, unrecorded, weights_of
from armillary.publish.stage import CARD, card_of
from armillary.publish.sums import SUMS, sums
from armillary.recipe import write_sealed


def calibration_of(corpus: Path) -> Callable[[Source], Tensor]:
    """The function that gives training tokens of ``corpus`` to a conversion (``ConvertOptions.calibration``).

    Raises:
        DamagedFileError: a file of the corpus was changed.
    """
    opened = Corpus.open(corpus)
    return lambda source: calibration_tokens(source, opened)


def convert_measured(
    src: Path,
    dst: Path,
    options: ConvertOptions,
    corpus: Path,
    progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> tuple[Converted, list[DomainLoss]]:
    """Convert ``src`` to the folder ``dst`` (``model.convert``), and measure both on the validation text of ``corpus``.

    ``progress`` gets ``convert`` or ``evaluate``, what is done and what there is in all.

    Raises:
        UsageError: as ``model.convert``, ``dst`` is a single file, or the corpus and the model do not fit.
        DamagedFileError: a file of a publication ``src`` or of the corpus was changed.
        ArmillaryError: as ``model.convert``.
    """
    opened = Corpus.open(corpus)
    document = check_lineage(src) if (src / LINEAGE).is_file() else None
    rows: list[DomainLoss] = []

    def finish(source: Source, folder: Path) -> None:
        rows.extend(compare_losses(source, open_model(folder), opened, lambda done, of: progress("evaluate", done, of)))
        about = {
            "from": src.resolve().name,
            "to": options.to,
            "stored": options.quantize or options.dtype or str(source.dtype).removeprefix("torch."),
            "calibrated": options.calibration is not None,
            "corpus": opened.hash,
            "licences": {name: opened.manifest.domains[name].licence for name in opened.domains},
            "losses": [asdict(row) for row in rows],
        }
        _publish(folder, _unrecorded(source) if document is None else document, about, dst.name)

    found = convert(src, dst, options, lambda done, of: progress("convert", done, of), finish)
    return found, rows


def _unrecorded(source: Source) -> dict[str, Any]:
    """The lineage of a source without one."""
    files = [source.folder] if source.folder.is_file() else sorted(source.folder.iterdir())
    return unrecorded(source, {path.name: ledger.sha256(path) for path in files if path.is_file()})


def _publish(folder: Path, document: dict[str, Any], about: dict[str, Any], name: str) -> None:
    """Make ``folder`` a publication with the lineage ``document`` and the conversion ``about``."""
    origin = document["weights"]
    lineage = {key: value for key, value in document.items() if key not in ("files", "publication")}
    lineage["weights"] = weights_of(folder, ledger.fingerprints(folder))
    if "model" in lineage:
        lineage["model"] = facts(open_model(folder), folder)
    lineage["conversion"] = {**about, "weights": origin}
    (folder / CARD).write_text(card_of(name, lineage), encoding="utf-8")
    write_sealed(folder / LINEAGE, {**lineage, "files": ledger.fingerprints(folder)})
    (folder / SUMS).write_text(sums(ledger.fingerprints(folder)), encoding="utf-8")
