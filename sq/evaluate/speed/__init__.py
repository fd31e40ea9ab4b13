"""Speed and memory of a whole model: prefill and decode in full precision, fake quantized and packed.

It needs torch and transformers alone, so that it runs on a bare machine with a GPU.
"""

from sq.evaluate.speed.measure import Speed, measure_speed
from sq.evaluate.speed.models import fake_of, full_precision, linear_bytes, weight_bytes

__all__ = ["Speed", "fake_of", "full_precision", "linear_bytes", "measure_speed", "weight_bytes"]
