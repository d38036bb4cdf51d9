"""Everything specific to Hugging Face: configs, roles, checkpoints, tokenizers, OpenELM."""
