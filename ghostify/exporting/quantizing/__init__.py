"""int8: weights and maps as 8-bit integers, by post-training quantisation calibrated on images.

    x ≈ scale · (q − zero),   q = round(x / scale) + zero ∈ {−128 … 127}

Weights have a scale for each output channel, maps one for the whole tensor, read off its smallest and largest number on
the calibration images (Jacob et al. 2018, arXiv:1712.05877, section 2.1; Nagel et al. 2021, arXiv:2106.08295).

``calibration.py`` has the images, ``faint.py`` and ``sensitivity.py`` make the network ready for so few levels, and
each backend quantises the graph in its own way: ``by_onnxruntime.py``, ``by_nncf.py``, ``by_torchao.py``.
"""

from ghostify.exporting.quantizing.calibration import MOST, Calibration, calibration_of
from ghostify.exporting.quantizing.prepare import prepared
from ghostify.exporting.quantizing.result import Kept, Quantized

__all__ = ["MOST", "Calibration", "Kept", "Quantized", "calibration_of", "prepared"]
