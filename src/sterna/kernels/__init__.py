"""The few loop programs written by hand, for operators whose access is irregular.

They are built with the same expressions as everything else, know no target but the lanes they
are given, and are checked against a plain reference like any kernel.
"""
