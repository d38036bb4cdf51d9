"""The legs of one check: run, baselines, authoring, conversion, quantization, runtime."""
