"""What a test runs in the process of Triton's interpreter; by this name the process can import it."""

from __future__ import annotations

from typing import Any

from sq.kernels.bench.case import Place
from sq.kernels.bench.measure import measure
from sq.kernels.bench.shapes import Shapes
from sq.kernels.bench.suite import suite
from sq.kernels.bench.timing import called_once


def interpreted_suite(shapes: Shapes) -> list[dict[str, Any]]:
    """Results of every case at these sizes, each called once."""
    return list(measure(suite(shapes), Place("cpu", "triton"), called_once))
