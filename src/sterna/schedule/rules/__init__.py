"""Rules that write schedules, one file for each shape that a Group can have.

A rule is a pure function of a Group's structure and of its knobs, a frozen record of numbers.
It knows neither which operators the Group was made of nor which target it is for.
"""
