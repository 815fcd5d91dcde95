"""The publisher's side of updates over the air: keys, signed metadata, packs of pieces."""
