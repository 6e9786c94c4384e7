"""IRModule -> IRModule, one pass a file; `pipeline` is the table of contents."""
