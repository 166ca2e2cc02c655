"""Publishing a model with its evidence: the folder that transformers loads, its lineage and its card."""

from armillary.publish.export import (
    check_lineage,
    check_publishable,
    is_publication,
    is_published,
    publish,
    publish_chat,
)
from armillary.publish.ledger import check_record
from armillary.publish.lineage import origins

__all__ = [
    "check_lineage",
    "check_publishable",
    "check_record",
    "is_publication",
    "is_published",
    "origins",
    "publish",
    "publish_chat",
]
