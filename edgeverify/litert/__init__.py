"""All that is known of LiteRT files: graphs, conversion, quantization, bundles."""
