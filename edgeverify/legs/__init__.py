"""The line of one check: run, baselines, authoring, conversion, quantization, runtime."""
