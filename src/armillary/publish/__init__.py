"""Publishes a model with its evidence: a folder that transformers loads, the lineage, and the model card."""

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
