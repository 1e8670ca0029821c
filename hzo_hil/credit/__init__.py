"""Who computes targets: by queries (`hzo`), or through twins of the stages (`twin`)."""
