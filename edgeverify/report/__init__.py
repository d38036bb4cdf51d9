"""Reports: plain data (``model``) and its renderers, one file each."""
