"""Armillary (浑仪): find a training recipe with many small models, and record what the large run will reach."""

__version__ = "0.1.0"
