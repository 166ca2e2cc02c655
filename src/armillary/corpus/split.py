"""Which documents train, which validate, and which are dropped: decided by hashes of whole documents.

All parts of a document are on one side: the hash of the whole document decides. Near duplicates (``near.py``) form
clusters, and the hash of one member decides for all, in every domain. A duplicate has the hash of its twin and is
dropped. So no validation text is a variant of a training text. A document keeps its side when others join the domain,
as long as its hash is below ``validation_share``.

Trade-offs: text held out beyond ``validation_chars`` is used in neither split, to keep the split stable. A document or
cluster with more than a quarter of a domain's text always trains, if there is another. A domain with a single document
is split within it: the end of the document validates, and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from armillary.corpus.documents import HASH_BYTES
from armillary.recipe import UsageError

DUPLICATE, TRAIN, VALIDATION, SET_ASIDE = range(4)
BIG = 0.25  # share of a domain's text from which on a cluster is too much to hold out
Labels = NDArray[np.int64]
Fates = NDArray[np.uint8]
Chars = NDArray[Any]  # characters of documents or clusters

ONE_DOCUMENT = "the domain is one document; its last parts are the validation text, the others the training text"
ONE_CLUSTER = (
    "the documents of the domain are near duplicates of each other, or one file; they are split one by one, so the "
    "validation text nearly repeats the training text"
)


@dataclass(frozen=True)
class DomainDocuments:
    """The parts of a domain's documents in order: hashes (bytes, ``S16``), and lengths in characters.

    ``document`` numbers for each part the document that it was cut from, and ``document_hashes`` are the hashes of the
    whole documents; without them each part is a separate document. ``files`` groups documents that are blocks of one
    file; by default none are.
    """

    name: str
    train: bool
    hashes: NDArray[np.bytes_]
    chars: NDArray[np.int64]
    document: Labels | None = None
    document_hashes: NDArray[np.bytes_] | None = None
    files: Labels | None = None


@dataclass(frozen=True)
class DomainSplit:
    """The fate of each part of a domain, and counts of its documents (see ``DomainManifest``).

    ``remark`` says why the text could not be split by document; empty if it was.
    """

    fates: Fates
    whole_documents: int
    near_duplicates: int
    near_duplicates_moved: int
    near_duplicates_in: dict[str, int]
    remark: str


def split_documents(domains: Sequence[DomainDocuments], share: float, validation_chars: int) -> list[Fates]:
    """The fate of the parts of each domain, ignoring near duplicates: see ``Documents.split``."""
    documents = Documents(domains)
    return [split.fates for split in documents.split(np.arange(len(documents.different)), share, validation_chars)]


class Documents:
    """The documents of all domains, and which of them differ.

    Of equal documents the first stays: those of examined domains count before those of training domains, then the
    order of the domains decides. The same holds for equal parts, of which documents may share some.

    ``different`` numbers the documents that stay, counted through all domains in their order.

    Raises:
        UsageError: a training domain with fewer than two different parts, or an examined one with none.
    """

    def __init__(self, domains: Sequence[DomainDocuments]) -> None:
        self._domains = domains
        ranks = np.empty(len(domains), dtype=np.int64)
        ranks[sorted(range(len(domains)), key=lambda i: domains[i].train)] = np.arange(len(domains))
        hashes = [d.hashes if d.document_hashes is None else d.document_hashes for d in domains]
        offsets = np.cumsum([0, *map(len, hashes)])
        self._hashes = np.concatenate(hashes)
        self._domain = np.repeat(np.arange(len(domains)), list(map(len, hashes)))
        own = [np.arange(len(d.hashes)) if d.document is None else d.document for d in domains]
        self._part_document = np.concatenate([part + start for part, start in zip(own, offsets, strict=False)])
        self._part_hashes = np.concatenate([d.hashes for d in domains])
        self._part_chars = np.concatenate([d.chars for d in domains])
        self._bounds = np.cumsum([0, *(len(d.hashes) for d in domains)])

        order = np.argsort(ranks[self._domain], kind="stable")
        self.different = np.sort(order[np.unique(self._hashes[order], return_index=True)[1]])
        stays = np.zeros(len(self._hashes), dtype=bool)
        stays[self.different] = True
        # The order of document hashes, not of files, decides which of two equal parts stays.
        by_hash = np.empty(len(self._hashes), dtype=np.int64)
        by_hash[np.argsort(self._hashes, kind="stable")] = np.arange(len(self._hashes))
        parts = np.flatnonzero(stays[self._part_document])
        document = self._part_document[parts]
        parts = parts[np.lexsort((parts, by_hash[document], ranks[self._domain[document]]))]
        self._kept = np.sort(parts[np.unique(self._part_hashes[parts], return_index=True)[1]])
        for i, domain in enumerate(domains):
            kept = np.count_nonzero((self._kept >= self._bounds[i]) & (self._kept < self._bounds[i + 1]))
            if kept < (2 if domain.train else 1):
                raise UsageError(
                    f"domain '{domain.name}': {kept} of its {len(domain.hashes)} documents differ from each other "
                    f"and from those of the domains before it; "
                    + ("training needs one and validation another: " if domain.train else "validation needs one: ")
                    + "give it more text, or lower corpus.max_document_chars so that long documents are cut"
                )

    def hashes(self) -> NDArray[np.bytes_]:
        """The hashes of the different documents."""
        return self._hashes[self.different]

    def split(self, near: Labels, share: float, validation_chars: int) -> list[DomainSplit]:
        """The fate of each part of each domain: DUPLICATE, TRAIN, VALIDATION or SET_ASIDE.

        ``near`` has a label for each of the different documents, equal for near duplicates. In a training domain, the
        clusters with a hash in the lowest ``share`` of all possible hashes are held out: at least one and never all.
        All documents of examined domains are held out, and so is every document that resembles one of them. Of the
        parts held out, those with the lowest hashes validate until they have ``validation_chars`` characters.

        Raises:
            UsageError: a training domain whose every document resembles one of an examined domain.
        """
        clusters = _Clusters(self._joined(near), self._hashes[self.different], share)
        place = np.full(len(self._hashes), -1)
        place[self.different] = np.arange(len(self.different))
        kept_document = place[self._part_document[self._kept]]
        chars = np.bincount(kept_document, weights=self._part_chars[self._kept], minlength=len(self.different))
        domain = self._domain[self.different]
        members = [np.flatnonzero((domain == i) & (chars > 0)) for i in range(len(self._domains))]
        for i, examined in enumerate(self._domains):
            if not examined.train:
                clusters.force(members[i])
        training = [i for i, d in enumerate(self._domains) if d.train]
        for i in training:
            if clusters.is_forced(members[i]):
                raise UsageError(
                    f"domain '{self._domains[i].name}': each of its documents resembles one of a domain that is only "
                    "examined (train: false), so none is left to train on; give it other text"
                )
            clusters.keep_big(members[i], chars[members[i]])
        split_up = clusters.balance([members[i] for i in training], [chars[members[i]] for i in training])
        held_documents = clusters.held[clusters.of].copy()
        remarks = [""] * len(self._domains)
        for i, splitting in zip(training, split_up, strict=True):
            if not splitting:
                continue
            free = members[i][~clusters.forced[clusters.of[members[i]]]]
            if len(members[i]) == 1:
                remarks[i] = ONE_DOCUMENT
            elif len(free) < len(members[i]):  # what resembles an examined domain is held out already
                held_documents[free] = False
                remarks[i] = ONE_CLUSTER
            else:
                alone = _Clusters(np.arange(len(free)), self._hashes[self.different[free]], share)
                alone.keep_big(np.arange(len(free)), chars[free])
                alone.balance([np.arange(len(free))], [chars[free]])
                held_documents[free] = alone.held
                remarks[i] = ONE_CLUSTER
        held = held_documents[kept_document]
        for i in training:
            if remarks[i] == ONE_DOCUMENT:
                mine = np.flatnonzero(kept_document == members[i][0])
                held[mine] = np.arange(len(mine)) >= len(mine) - max(1, int(share * len(mine)))
        fates = np.full(len(self._part_hashes), DUPLICATE, dtype=np.uint8)
        fates[self._kept] = np.where(held, SET_ASIDE, TRAIN)
        natural = (clusters.own_key < clusters.limit) | ~np.array([d.train for d in self._domains])[domain]
        found = _near_counts(near, domain, [d.name for d in self._domains])
        splits = []
        for i in range(len(self._domains)):
            own_fates = fates[self._bounds[i] : self._bounds[i + 1]]
            _choose(own_fates, self._domains[i], validation_chars)
            moved = found.is_near & (domain == i) & (natural != held_documents) & clusters.is_mixed(natural)
            splits.append(
                DomainSplit(
                    fates=own_fates,
                    whole_documents=int(np.count_nonzero(domain == i)),
                    near_duplicates=int(np.count_nonzero(found.is_near & (domain == i))),
                    near_duplicates_moved=int(np.count_nonzero(moved)),
                    near_duplicates_in=found.elsewhere[i],
                    remark=remarks[i],
                )
            )
        return splits

    def _joined(self, near: Labels) -> Labels:
        """``near`` with the blocks of one file in one cluster as well."""
        if all(d.files is None for d in self._domains):
            return near
        files, start = [], 0
        for domain in self._domains:
            count = len(domain.hashes if domain.document_hashes is None else domain.document_hashes)
            own = np.arange(count) if domain.files is None else domain.files
            files.append(own + start)
            start += count
        file = np.concatenate(files)[self.different]
        nodes = int(max(near.max(), 0)) + 1
        size = nodes + start
        graph = coo_array((np.ones(len(near), dtype=bool), (near, nodes + file)), shape=(size, size))
        return np.asarray(connected_components(graph, directed=False)[1][near], dtype=np.int64)


class _Clusters:
    """Clusters of documents and the side of each; ``held`` is per cluster, ``of`` the cluster of each document."""

    def __init__(self, labels: Labels, hashes: NDArray[np.bytes_], share: float) -> None:
        self.of: Labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
        halves = np.frombuffer(np.ascontiguousarray(hashes).tobytes(), dtype=">u8").reshape(-1, HASH_BYTES // 8)
        self.own_key = halves[:, 0].astype(np.uint64)
        self.limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
        # The member with the lowest second half of the hash decides for its cluster. The two halves are independent,
        # so a large cluster is not held out more often than a small one.
        order = np.lexsort((self.own_key, halves[:, 1], self.of))
        first = order[np.unique(self.of[order], return_index=True)[1]]
        self.key = self.own_key[first]
        self.forced = np.zeros(len(first), dtype=bool)
        self._big = np.zeros(len(first), dtype=bool)
        self.held = self.key < self.limit

    def force(self, documents: Labels) -> None:
        """Hold out the clusters of documents of an examined domain."""
        self.forced[self.of[documents]] = True
        self.held |= self.forced

    def is_forced(self, documents: Labels) -> bool:
        """Whether all clusters of a domain are held out by force."""
        return bool(self.forced[self.of[documents]].all())

    def keep_big(self, documents: Labels, chars: Chars) -> None:
        """Keep clusters with too much of a domain's text in training."""
        clusters, text = self._text(documents, chars)
        self._big[clusters[text > BIG * text.sum()]] = True
        self.held &= ~self._big | self.forced

    def is_mixed(self, natural: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each document's cluster holds documents of both natural sides."""
        count = np.bincount(self.of)
        there = np.bincount(self.of, weights=natural)
        return np.asarray(((there > 0) & (there < count))[self.of])

    def balance(self, domains: Sequence[Labels], chars: Sequence[Chars]) -> list[bool]:
        """Give each training domain a cluster of either side; return which domains cannot be split by cluster."""
        texts = [self._text(documents, text) for documents, text in zip(domains, chars, strict=True)]
        only = np.zeros(len(self.held), dtype=bool)
        for clusters, _ in texts:
            only[clusters] |= len(clusters) == 1
        fixed = self.forced | only
        for clusters, text in texts:
            free = np.flatnonzero(~fixed[clusters])
            if not self.held[clusters].any() and len(free):
                light = free[~self._big[clusters[free]]]
                chosen = light[np.argmin(self.key[clusters[light]])] if len(light) else free[np.argmin(text[free])]
                self.held[clusters[chosen]] = fixed[clusters[chosen]] = True
            elif self.held[clusters].all() and len(free):
                chosen = free[np.argmax(self.key[clusters[free]])]
                self.held[clusters[chosen]] = False
                fixed[clusters[chosen]] = True
        return [bool(self.held[c].all() or not self.held[c].any()) for c, _ in texts]

    def _text(self, documents: Labels, chars: Chars) -> tuple[Labels, Chars]:
        clusters, index = np.unique(self.of[documents], return_inverse=True)
        return clusters, np.bincount(index.reshape(-1), weights=chars)


@dataclass(frozen=True)
class _NearCounts:
    is_near: NDArray[np.bool_]
    elsewhere: list[dict[str, int]]


def _near_counts(near: Labels, domain: Labels, names: Sequence[str]) -> _NearCounts:
    """Which documents have near duplicates, and in how many a domain resembles each other one."""
    _, index, counts = np.unique(near, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    is_near = counts[index] > 1
    within = [np.bincount(index[domain == i], minlength=len(counts)) > 0 for i in range(len(names))]
    elsewhere = []
    for i in range(len(names)):
        mine = index[(domain == i) & is_near]
        found = {name: int(np.count_nonzero(within[j][mine])) for j, name in enumerate(names) if j != i}
        elsewhere.append({name: count for name, count in found.items() if count})
    return _NearCounts(is_near, elsewhere)


def _choose(fates: Fates, domain: DomainDocuments, validation_chars: int) -> None:
    """Let the parts with the lowest hashes validate, of those held out, until they have ``validation_chars``."""
    held = np.flatnonzero(fates == SET_ASIDE)
    held = held[np.argsort(domain.hashes[held], kind="stable")]
    before = np.cumsum(domain.chars[held]) - domain.chars[held]
    fates[held[before < validation_chars]] = VALIDATION
