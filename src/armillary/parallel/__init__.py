"""One training program over many ranks, in every dimension; the model knows nothing of it."""

from armillary.parallel.mesh import Grid, build_grid
from armillary.parallel.program import Program

__all__ = ["Grid", "Program", "build_grid"]
