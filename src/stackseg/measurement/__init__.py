"""What masks say in numbers: fractions, objects, pores."""
