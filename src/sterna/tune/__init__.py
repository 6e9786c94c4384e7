"""Finding better numbers for the schedule rules by measuring them."""
