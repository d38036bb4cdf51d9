"""All that is known of Hugging Face: configs, roles, checkpoints, tokenizers, OpenELM."""
