"""Words everyone shares: dtypes, targets, errors, the artifact schema. Imports nothing of ours."""
