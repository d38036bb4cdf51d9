"""Reads a .tflite's graph, finds its taps, and writes copies that return them."""

from edgeverify.litert.flatbuffer.graph import Graph, ModelFile, Signature
from edgeverify.litert.flatbuffer.instrument import (
    INJECT,
    TAP,
    Instrumentation,
    by_tap,
    cut_points,
    instrument,
    instrumented,
)
from edgeverify.litert.flatbuffer.locate import Located, TapRef, locate_taps
from edgeverify.litert.flatbuffer.skeleton import Skeleton

__all__ = [
    "INJECT",
    "TAP",
    "Graph",
    "Instrumentation",
    "Located",
    "ModelFile",
    "Signature",
    "Skeleton",
    "TapRef",
    "by_tap",
    "cut_points",
    "instrument",
    "instrumented",
    "locate_taps",
]
