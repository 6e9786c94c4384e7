"""Words everyone shares: dtypes, targets, errors, the artifact's schema. Imports nothing of ours."""
