"""Publishes a model with its evidence: a folder that transformers loads, the lineage, and the model card."""

from armillary.publish.converted import calibration_of, convert_measured
from armillary.publish.export import (
    check_lineage,
    check_publishable,
    is_publication,
    is_published,
    publish,
    publish_chat,
)
from armillary.publish.hubs import HUBS, Target
from armillary.publish.ledger import check_record
from armillary.publish.lineage import Lineage, lineage_of, origins
from armillary.publish.sending import SendOptions, Sent, send
from armillary.publish.stage import Additions
from armillary.publish.sums import SUMS, check_sums

__all__ = [
    "HUBS",
    "SUMS",
    "Additions",
    "Lineage",
    "SendOptions",
    "Sent",
    "Target",
    "calibration_of",
    "check_lineage",
    "check_publishable",
    "check_record",
    "check_sums",
    "convert_measured",
    "is_publication",
    "is_published",
    "lineage_of",
    "origins",
    "publish",
    "publish_chat",
    "send",
]
