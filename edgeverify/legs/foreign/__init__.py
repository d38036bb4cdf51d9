"""Files that edgeverify did not convert: what they are, and whether they are the reference."""
