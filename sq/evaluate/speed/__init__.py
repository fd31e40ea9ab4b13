"""Speed and memory of a whole model: prefill and decode in full precision, fake quantized and packed.

Needs torch and transformers alone, so that it runs on a bare machine with a GPU:

    from sq.evaluate.speed import measure_speed
    speed = measure_speed(stream, packed_model, kinds=("bf16", "packed"), batches=(1, 16), prompt=2048, new_tokens=256)
"""

from sq.evaluate.speed.measure import Speed, measure_speed
from sq.evaluate.speed.models import fake_of, full_precision, linear_bytes, weight_bytes

__all__ = ["Speed", "fake_of", "full_precision", "linear_bytes", "measure_speed", "weight_bytes"]
