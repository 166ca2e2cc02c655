"""Where a large run executes: processes of this machine, or those that another launcher has started."""

from armillary.launch.capacity import fit_workers, worker_bytes
from armillary.launch.large import check_corpus, launch, launched, stopping

__all__ = ["check_corpus", "fit_workers", "launch", "launched", "stopping", "worker_bytes"]
