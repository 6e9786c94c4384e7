"""The command line: one file a verb. Heavy rooms are imported by the verb that needs them."""
