"""Reading a .tflite's graph, finding the taps in it, and writing copies that yield them."""

from edgeverify.flatbuffer.graph import Graph, ModelFile, Signature
from edgeverify.flatbuffer.instrument import INJECT, TAP, Instrumentation, cut_points, instrument
from edgeverify.flatbuffer.locate import Located, TapRef, locate_taps

__all__ = [
    "INJECT",
    "TAP",
    "Graph",
    "Instrumentation",
    "Located",
    "ModelFile",
    "Signature",
    "TapRef",
    "cut_points",
    "instrument",
    "locate_taps",
]
