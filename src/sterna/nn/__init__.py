"""What model authors write with: modules, and the trace that turns them into graph IR."""
