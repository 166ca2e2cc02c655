"""Where a large run is carried out: processes of this machine, or those that another launcher has started."""

from armillary.launch.large import launch, launched

__all__ = ["launch", "launched"]
