"""One training program over many ranks, in every dimension; the model contains no parallel code."""

from armillary.parallel.dry_run import DryRun, dry_run
from armillary.parallel.measure import measure_machine
from armillary.parallel.mesh import Grid, build_grid
from armillary.parallel.program import Program

__all__ = ["DryRun", "Grid", "Program", "build_grid", "dry_run", "measure_machine"]
