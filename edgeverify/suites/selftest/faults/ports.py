"""Groups of ports by what their families have."""

LLAMA = ("tinyllama", "smollm", "smollm2")
GEMMA = ("gemma1", "gemma2")
GATED = (*LLAMA, *GEMMA)  # gate and up are matrices of their own
RMS = (*GATED, "openelm")
UNIFORM = (*GATED, "phi2")  # every layer has the same shapes
ONE_RESIDUAL_NORM = (*LLAMA, "gemma1", "openelm")  # a norm before each sublayer and none behind
ALL = (*GATED, "phi2", "openelm")
ALL_BUT_GEMMA2 = tuple(name for name in ALL if name != "gemma2")  # neither softcap nor window
