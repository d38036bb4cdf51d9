"""Everything specific to LiteRT files: graphs, conversion, quantization, bundles."""
