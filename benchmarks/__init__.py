"""What quantization-aware training costs; run one with ``python -m benchmarks.step_time``, all with ``make bench``."""
